"""ONNX Runtime's CUDA provider on a machine without a GPU: options, versions, placement, device arrays.

Buffers are on the CPU, and what a driver, a wheel or a provider would say is said by fakes.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from save_deploy.bundle import Manifest
from save_deploy.cli.doctor import _lines
from save_deploy.errors import BackendError, ParityError, SaveDeployError
from save_deploy.machine import Nvidia
from save_deploy.runtime import doctor as doctor_module
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.self_test import golden_parity
from save_deploy.runtime.session import CudaOptions, ort_gpu
from save_deploy.runtime.session.choose import Choice
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.device import DeviceArray, _given, read_capsule
from save_deploy.runtime.session.ort import CPU, CUDA, session_options
from save_deploy.runtime.session.ort_cuda import (
    RECORD_PLACEMENT,
    cuda_of,
    placement,
    require_placement,
    require_version,
)
from save_deploy.runtime.session.ort_gpu import OrtGpuSession
from tests.runtime.engines import machine
from tests.runtime.test_sessions import inputs_of, opened


def test_options_as_the_provider_takes_them() -> None:
    assert CudaOptions().provider_options() == {
        "enable_cuda_graph": "1", "use_tf32": "0", "prefer_nhwc": "0",
        "arena_extend_strategy": "kSameAsRequested",
    }  # fmt: skip
    asked = CudaOptions.parse("graph=off, tf32=on,nhwc=on,memory=4096,arena=power2")
    assert asked == CudaOptions(False, True, True, 4096, "power2")
    assert asked.provider_options() == {
        "enable_cuda_graph": "0", "use_tf32": "1", "prefer_nhwc": "1",
        "arena_extend_strategy": "kNextPowerOfTwo", "gpu_mem_limit": str(4 * 2**30),
    }  # fmt: skip
    assert CudaOptions.parse("") == CudaOptions()


@pytest.mark.parametrize("wrong", [
    "graph", "graph=yes", "memory=-1", "memory=1", "memory=99999999", "arena=all", "speed=on", "=",
    "tf32=on;graph=off", "memory=\u0664\u0660\u0669\u0666x",
])  # fmt: skip
def test_wrong_options(wrong: str) -> None:
    with pytest.raises(SaveDeployError, match=r"unknown|out of range"):
        CudaOptions.parse(wrong)


@pytest.mark.parametrize(("version", "cuda"), [
    ("1.25.0", 12), ("1.26.9", 12), ("1.27.0", 13), ("1.31.1", 13), ("2.0.0", 13),
])  # fmt: skip
def test_cuda_of_a_wheel(version: str, cuda: int) -> None:
    assert cuda_of(version) == cuda
    require_version(version, Nvidia(machine().gpus, "999", f"{cuda}.0"))
    require_version(version, Nvidia(machine().gpus, None, None))  # the loader has the last word


@pytest.mark.parametrize(("version", "served", "words"), [
    ("1.24.4", "13.0", ("too old", "Pad of opset 19", "1.25 or newer", "<1.27")),
    ("1.9.0", "12.8", ("too old",)),
    ("1.31.1", "12.8", ("built for CUDA 13", "up to CUDA 12.8", "driver 580", ">=1.25,<1.27")),
    ("1.27.0", "11.8", ("built for CUDA 13", "driver 580")),
    ("1.26.0", "11.8", ("built for CUDA 12", "driver 525")),
])  # fmt: skip
def test_wheels_that_do_not_fit(version: str, served: str, words: tuple[str, ...]) -> None:
    with pytest.raises(BackendError) as caught:
        require_version(version, Nvidia(machine().gpus, "570.1", served))
    assert caught.value.exit_code == 3 and all(word in str(caught.value) for word in words)
    if served == "11.8":
        assert "<1.27" not in str(caught.value), "no wheel helps this driver"


def test_a_wheel_that_does_not_fit_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from save_deploy.runtime.session import ort

    monkeypatch.setattr(ort, "read_nvidia", lambda: Nvidia(machine().gpus, "570.1", "12.8"))
    monkeypatch.setattr(ort, "version", lambda package: "1.31.1")
    monkeypatch.setattr(ort, "missing_library", lambda *_: pytest.fail("a library was loaded"))
    with pytest.raises(BackendError, match="built for CUDA 13"):
        ort.require_provider(CUDA)


@pytest.mark.parametrize(("version", "cuda", "says"), [
    ("1.31.1", "13.0", "onnxruntime-gpu 1.31.1 is built for CUDA 13"),
    ("1.31.1", "12.8", "is built for CUDA 13; next: install"),
    ("1.24.0", "13.0", "too old"),
    ("", "13.0", ""),
])  # fmt: skip
def test_the_doctor_says_it(
    version: str, cuda: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "run_trials", lambda: ())
    monkeypatch.setattr(doctor_module, "probe_machine", lambda: machine(cuda=cuda))
    monkeypatch.setattr(doctor_module, "version", lambda package: version)
    (line, *_) = [x for x in _lines(doctor_module.examine()) if x.startswith("CUDA  ")] or [""]
    assert says in line and bool(line) == bool(version)


def profile_session(path: Path) -> Any:
    options = session_options(1)
    options.add_session_config_entry(RECORD_PLACEMENT, "1")
    return onnxruntime.InferenceSession(str(path), options, providers=[CPU])


def test_placement_is_the_sessions_own_word(bundle_fp32: Path) -> None:
    """All nodes on the CPU: asked for CUDA they are named, asked for the CPU all is well."""
    session = profile_session(bundle_fp32 / "model.onnx")
    found = placement(session)
    assert set(found) == {CPU} and len(found[CPU]) > 50
    require_placement(session, CPU, "model.onnx")
    with pytest.raises(BackendError, match=rf"do not run on CUDA(.|\n)*on {CPU}: \w+ (.|\n)*more"):
        require_placement(session, CUDA, "model.onnx")


def part(provider: str, *nodes: tuple[str, str]) -> Any:
    made = [SimpleNamespace(op_type=op, name=name) for op, name in nodes]
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: made)


def test_one_node_or_one_copy_is_enough() -> None:
    told = lambda *parts: SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
    all_well = part(CUDA, ("MatMul", "a"), ("Add", "b"))
    require_placement(told(all_well), CUDA, "g")
    with pytest.raises(BackendError, match="1 on CPUExecutionProvider: Pad p"):
        require_placement(told(all_well, part(CPU, ("Pad", "p"))), CUDA, "g")
    with pytest.raises(BackendError, match="between host and device: MemcpyToHost m"):
        require_placement(told(all_well, part(CUDA, ("MemcpyToHost", "m"))), CUDA, "g")
    require_placement(SimpleNamespace(), CUDA, "an onnxruntime that does not tell")


def test_a_graph_that_cannot_be_captured_costs_speed_alone(
    bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Opened with a graph, then without; an error that is not the graph's is raised."""
    asked: list[dict[str, str]] = []

    def on_the_cpu(provider: str, *given: Any) -> Any:
        asked.append(given[-1].provider_options())
        if asked[-1]["enable_cuda_graph"] == broken:
            raise BackendError("cannot capture", got="Memcpy nodes")
        return [CPU]

    monkeypatch.setattr(ort_gpu, "with_options", on_the_cpu)
    monkeypatch.setattr(ort_gpu, "CUDA", CPU)  # the branch of CUDA, with a session of the CPU
    spec, path = Manifest.read(bundle_fp32).model, bundle_fp32 / "model.onnx"
    broken = "1"
    with OrtGpuSession(path, spec, provider=CPU, threads=1, cuda=CudaOptions(tf32=True)) as session:
        assert [o["enable_cuda_graph"] for o in asked] == ["1", "0"]
        assert session.cuda == CudaOptions(graph=False, tf32=True) and asked[-1]["use_tf32"] == "1"
        assert "no CUDA graph, which costs speed: Memcpy nodes" in caplog.text
        inputs = inputs_of(session)
        found = session.infer(inputs)["mask_logits"]
    with opened(bundle_fp32, "onnxruntime", threads=1) as plain:
        np.testing.assert_array_equal(plain.infer(inputs)["mask_logits"], found)
    broken, asked[:] = "0", []
    with pytest.raises(BackendError, match="cannot capture"):
        OrtGpuSession(path, spec, provider=CPU, threads=1, cuda=CudaOptions(graph=False))
    assert len(asked) == 1


def test_addresses_never_change(bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph reads and writes where it did at its capture: inputs of the host and of the
    device go into the same buffers."""
    spec, path = Manifest.read(bundle_fp32).model, bundle_fp32 / "model.onnx"
    copies: list[int] = []

    def on_device(self: Cuda, target: int, source: int, n: int, stream: Any) -> None:
        import ctypes

        copies.append(target)
        ctypes.memmove(target, source, n)

    monkeypatch.setattr(Cuda, "__init__", lambda self: None)
    monkeypatch.setattr(Cuda, "on_device", on_device)
    monkeypatch.setattr(Cuda, "synchronize", lambda self, stream: None)
    with OrtGpuSession(path, spec, provider=CPU, threads=1) as session:
        addresses = {n: v.data_ptr() for n, v in session._inputs.items()}
        out = session._outputs["mask_logits"].data_ptr()
        first, second = inputs_of(session, 0), inputs_of(session, 1)
        expected = [session.infer(i)["mask_logits"] for i in (first, second)]
        monkeypatch.setattr(
            ort_gpu,
            "device_input",
            lambda given, tensor, cuda: DeviceArray(
                given[tensor.name].ctypes.data, tensor.shape, tensor.dtype
            ),
        )
        found = session.infer_device(first)["mask_logits"]
        assert copies == list(addresses.values()) and found.pointer == out
        shared = np.from_dlpack(DeviceArray(found.pointer, found.shape, found.dtype, place=(1, 0)))
        np.testing.assert_array_equal(shared, expected[0])
        np.testing.assert_array_equal(session.infer(second)["mask_logits"], expected[1])
        np.testing.assert_array_equal(shared, expected[1])  # the session's own buffer
        assert {n: v.data_ptr() for n, v in session._inputs.items()} == addresses


def test_results_speak_dlpack() -> None:
    """Values, types and shapes, read by numpy, torch and our own reader."""
    assert DeviceArray(0, (1,), "float32").__dlpack_device__() == (2, 0)  # CUDA, the first device
    for dtype in ("float32", "uint8", "int64", "float16", "bool"):
        memory = (np.arange(24) % 2).astype(dtype).reshape(2, 3, 4)
        array = DeviceArray(memory.ctypes.data, memory.shape, dtype, None, (1, 0))
        assert array.__dlpack_device__() == (1, 0)
        for read in (np.from_dlpack, torch.from_dlpack):
            np.testing.assert_array_equal(np.asarray(read(array)), memory)
        found = read_capsule(array.__dlpack__())
        assert (found.shape, found.dtype) == ((2, 3, 4), dtype)
        del found
    assert not _given, "capsules that were taken or dropped are deleted"


def test_memory_lives_as_long_as_its_readers() -> None:
    class Owner:
        pass

    memory, owner = np.arange(6, dtype=np.float32), Owner()
    gone = weakref.ref(owner)
    kept = torch.from_dlpack(DeviceArray(memory.ctypes.data, (6,), "float32", owner, (1, 0)))
    del owner
    assert gone() is not None and len(_given) == 1
    np.testing.assert_array_equal(kept.numpy(), memory)
    del kept
    assert gone() is None and not _given


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_named(bundle_fp32: Path, value: float) -> None:
    manifest = Manifest.read(bundle_fp32)
    with load(bundle_fp32, backend="onnxruntime", threads=1) as pipeline:

        class Overflowing:
            embed = pipeline.embed

            def run(self, images: Any, heard: Any) -> Any:
                logits = pipeline.run(images, heard)
                logits[0, 0, :3] = value
                return logits

        spoiled: Any = Overflowing()
        with pytest.raises(ParityError, match=r"not finite(.|\n)*3 of \d+ values(.|\n)*sample 0"):
            golden_parity(spoiled, bundle_fp32, manifest, hint="do that")
        assert isinstance(pipeline, SavePipeline)


def test_a_verdict_belongs_to_its_options() -> None:
    choice = Choice("onnxruntime-cuda")
    texts = {choice.with_settings(CudaOptions(tf32=t)).settings for t in (True, False)}
    assert len(texts) == 2 and "" not in texts
    assert Choice("tensorrt").with_settings(CudaOptions()).settings == ""
