"""What a machine is found to have: driver and GPUs through fakes, libraries that import or do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from save_deploy import machine as nvidia_module
from save_deploy.machine import read_from, read_nvidia
from save_deploy.runtime.engine_check import probe_machine


class FakeLibcuda:
    """Stands for libcuda: two GPUs, the first an L4. `failing`: the call that answers 100."""

    def __init__(self, count: int = 2, failing: str = "") -> None:
        self.count, self.failing = count, failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 100
            self.answer(name, arguments)
            return 0

        return call

    def answer(self, name: str, arguments: tuple[Any, ...]) -> None:
        first = getattr(arguments[0], "_obj", arguments[0])
        if name == "cuDriverGetVersion":
            first.value = 13010
        elif name == "cuDeviceGetCount":
            first.value = self.count
        elif name == "cuDeviceGet":
            first.value = arguments[1]
        elif name == "cuDeviceGetName":
            first.value = b"NVIDIA L4" if arguments[2].value == 0 else b"NVIDIA T4"
        elif name == "cuDeviceGetAttribute":
            l4 = arguments[2].value == 0
            first.value = {75: 8 if l4 else 7, 76: 9 if l4 else 5}[arguments[1]]
        elif name == "cuDeviceTotalMem_v2":
            first.value = 24 << 30
        elif name == "cuDeviceGetPCIBusId":
            first.value = b"0000:0%d:00.0" % arguments[2].value


class FakeNvml:
    """Stands for libnvidia-ml; refuses the memory of the second GPU."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = b"580.65.06"
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus: bytes, handle: Any) -> int:
        handle._obj.value = {b"0000:00:00.0": 1, b"0000:01:00.0": 2}[bus]
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        if handle.value == 2:
            return 3  # not supported
        memory._obj.free = 20 << 30
        return 0


def test_reading_gpus_through_fakes() -> None:
    found = read_from(FakeLibcuda(), FakeNvml())
    assert (found.driver, found.cuda, found.problem) == ("580.65.06", "13.1", "")
    assert [(g.name, g.target, g.free_bytes) for g in found.gpus] == [
        ("NVIDIA L4", "SM89", 20 << 30),
        ("NVIDIA T4", "SM75", None),
    ]
    alone = read_from(FakeLibcuda(count=1), None)
    assert alone.driver is None and alone.gpus[0].free_bytes is None


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGetName"])
def test_a_driver_that_fails_is_a_problem_not_a_crash(call: str) -> None:
    found = read_from(FakeLibcuda(failing=call), FakeNvml())
    assert found.gpus == () and f"{call} failed with error 100" in found.problem
    assert read_from(FakeLibcuda(count=0), None).problem == "the driver sees no GPU"


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_module, "CUDA_LIBRARY", "libcuda-absent.so.1")
    found = read_nvidia()
    assert found.gpus == () and "libcuda-absent.so.1" in found.problem


@pytest.mark.slow
def test_probe_is_silent_and_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from save_deploy.runtime.engine_check import probe_machine\n"
        "m = probe_machine(); print(m.os, sorted([*m.libraries, *m.broken]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert done.stdout.endswith("['cuda.bindings', 'tensorrt', 'tensorrt_rtx']\n")


def test_a_half_installed_library_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halftrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = probe_machine(("halftrt", "nonesuchtrt"))
    assert found.libraries == {}
    assert found.broken["halftrt"] == "libnvinfer.so.10: cannot open"
    assert "nonesuchtrt" in found.broken["nonesuchtrt"]
