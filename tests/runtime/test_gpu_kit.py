"""The kit for a borrowed GPU: every step runs on a CPU with a tiny model, as the code is now."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from save_deploy.machine import read_nvidia
from tests.conftest import ROOT, exported_once, tiny_file
from tests.gpu.__main__ import GROUPS
from tests.gpu.kit.thin_wheel import write_thin

KIT = ROOT / "tests/gpu/kit"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, bundle_fp32: Path) -> Path:
    """Bundles under the names that the kit gives its own: both of the tiny checkpoint at 224 px."""
    folder = tmp_path_factory.mktemp("kit")
    half = exported_once(
        "small16", checkpoint=tiny_file(), precision="fp16", res=224, n_golden=2, threads=1
    )
    for name, source in (("fp16_256", half), ("fp32_256", bundle_fp32)):
        shutil.copytree(source, folder / "bundles" / name)
    return folder


def step(n: int, work: Path) -> str:
    """-> what the step prints."""
    environment = {
        **os.environ, "PY": sys.executable, "SAVE_GPU_DRY": "1", "GPU_WORK": str(work / "work"),
        "OUT": str(work / "out"), "BUNDLES": str(work / "bundles"),
        "PYTEST_ADDOPTS": "-p no:xdist",  # the other machine has pytest alone
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(KIT / f"call{n}.sh")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert "== end" in text and "Traceback" not in text, text[-4000:]
    return text


@pytest.mark.thorough
def test_step_1(work: Path) -> None:
    step(1, work)
    found = json.loads((work / "out/torch_tiny_224_b1.json").read_text())
    assert [row["name"] for row in found["rows"]] == [
        "eager fp32", "eager tf32", "eager amp-fp16", "merged fp32", "merged fp16",
    ]  # fmt: skip
    for row in found["rows"]:
        assert "failed" not in row and row["not_finite"] == 0 and row["p50_ms"] > 0
    by = {row["name"]: row for row in found["rows"]}
    assert by["eager fp32"]["rel_l2"] < 1e-5 and by["merged fp32"]["rel_l2"] < 1e-5
    assert found["reference"] == "eager fp64" and found["macs_merged"] < found["macs_eager"]


@pytest.mark.thorough
def test_step_2(work: Path) -> None:
    step(2, work)
    found = json.loads((work / "out/ort.json").read_text())
    for bundle in ("fp16_256", "fp32_256"):
        rows = found[bundle]
        assert set(rows["profile"]["nodes"]) == {"CPU"} and rows["profile"]["memcpy_ops"] == 0
        for label in ("plain", "graph", "graph tf32", "graph nhwc"):
            assert rows[label]["finite"] and rows[label]["masks"] > 0.98, rows[label]
    assert found["fp32_256"]["plain"]["max_abs"] < 1e-3
    assert "can run    onnxruntime (model.onnx" in (work / "out/doctor.txt").read_text()
    report = (work / "out/gpu_report.md").read_text()
    assert re.search(r"^\d+ passed, 0 failed, \d+ skipped$", report, re.M), report
    assert "dry run: everything on the CPU" in report
    for test in ("test_golden_parity[fp16]", "test_threads[fp32]", "test_float32_is_float32"):
        assert f"| {test} | passed |" in report


@pytest.mark.thorough
def test_step_3(work: Path) -> None:
    step(3, work)
    found = json.loads((work / "out/bench_dry/bench.json").read_text())
    assert [entry["graph"] for entry in found["entries"]] == [
        "eager", "eager-bf16", "merged", "fp16",
    ]  # fmt: skip
    assert not [entry for entry in found["entries"] if "failed" in entry]
    assert {entry["device"] for entry in found["entries"]} == {"cpu"}


@pytest.mark.thorough
@pytest.mark.skipif(bool(read_nvidia().gpus), reason="this machine has a GPU")
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
def test_step_4(work: Path) -> None:
    """Built without a GPU, then refused for want of one; the library's words are kept."""
    step(4, work)
    found = json.loads((work / "out/rtx.json").read_text())
    for name in ("unset", "sm80", "sm89"):
        assert found[name]["build"].startswith("built in"), found[name]
        assert found[name]["load"] == "refused" and found[name]["load_log"]
    assert "run" not in found["sm80"] and not found["current"]["build"].startswith("built in")


def test_scripts_are_whole() -> None:
    """Bash reads them; the page and the script name the same steps; every file is used."""
    scripts = sorted(KIT.glob("*.sh"))
    for path in scripts:
        subprocess.run(["bash", "-n", str(path)], check=True, timeout=20)
    done = subprocess.run(
        ["bash", str(KIT / "kit.sh"), "calls"],
        cwd=ROOT, capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    page = (ROOT / "docs/gpu.md").read_text()
    steps = re.findall(r"command: (bash \S+) +carry: (\S+)", done.stdout)
    assert len(steps) == 4
    for command, carried in steps:
        assert f"| `{command}` | `{carried}` |" in page
        assert (ROOT / command.removeprefix("bash ")).is_file()
    assert all(f"`{group}`" in page for group in GROUPS)
    text = "".join(path.read_text() for path in scripts)
    names = {path.name for path in KIT.glob("*.py")} - {"__init__.py"}
    assert not [name for name in names if name not in text]


def fat_binary(*codes: tuple[int, int, bytes]) -> bytes:
    """Entries (kind, architecture, code) as nvcc lays them."""
    entries = b""
    for kind, arch, code in codes:
        head = struct.pack("<HHIQ", kind, 0, 64, len(code)).ljust(28, b"\0") + struct.pack(
            "<I", arch
        )
        entries += head.ljust(64, b"\0") + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def library(fat: bytes) -> bytes:
    """A 64-bit ELF file with the section .nv_fatbin and the names of its sections."""
    names = b"\0.nv_fatbin\0.shstrtab\0"
    at_names = 64 + len(fat)
    table = at_names + len(names)
    head = bytearray(64)
    head[:4] = b"\x7fELF"
    struct.pack_into("<Q", head, 0x28, table)
    struct.pack_into("<HHH", head, 0x3A, 64, 3, 2)
    row = lambda name, at, size: struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 1, 0)
    sections = bytes(64) + row(1, 64, len(fat)) + row(12, at_names, len(names))
    return bytes(head) + fat + names + sections


def test_a_thinned_wheel_keeps_the_code_of_one_gpu(tmp_path: Path) -> None:
    """Only machine code of other GPUs becomes zeroes, where there is some for this one; tools are left
    out; the list of files has no hash of what changed."""
    ours, other, ptx, lone = b"K" * 40, b"Z" * 24, b"P" * 16, b"L" * 32
    fat = fat_binary((2, 80, other), (2, 90, ours), (1, 90, ptx))
    fat += fat_binary((2, 75, b"O" * 8)) + fat_binary((2, 90, lone))
    provider = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    with zipfile.ZipFile(tmp_path / "old.whl", "w") as wheel:
        wheel.writestr(provider, library(fat))
        wheel.writestr("onnxruntime/tools/x.py", "x = 1")
        wheel.writestr("onnxruntime/__init__.py", "y = 2")
        listed = [provider, "onnxruntime/tools/x.py", "onnxruntime/__init__.py"]
        wheel.writestr("a.dist-info/RECORD", "\n".join(f"{name},sha256=0,1" for name in listed))
    for alone in (False, True):
        write_thin(tmp_path / "old.whl", tmp_path / "new.whl", 90, alone)
        with zipfile.ZipFile(tmp_path / "new.whl") as wheel:
            thin = wheel.read(provider)
            assert len(thin) == len(library(fat))
            assert ours in thin and other not in thin and b"O" * 8 in thin
            assert (lone in thin) != alone
            assert "onnxruntime/tools/x.py" not in wheel.namelist()
            assert wheel.read("a.dist-info/RECORD").decode().split(",")[0] == (
                "onnxruntime/__init__.py"
            )
