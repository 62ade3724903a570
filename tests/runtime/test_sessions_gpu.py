"""Sessions and backends of a GPU, on a machine without one: what is chosen, refused and asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from save_deploy.bundle import Manifest
from save_deploy.errors import BackendError, BundleError
from save_deploy.machine import Nvidia, read_nvidia
from save_deploy.runtime import engine_check
from save_deploy.runtime.compare import entries, plan
from save_deploy.runtime.compare.options import CompareOptions
from save_deploy.runtime.engine_trust import built_here, note_built_here
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.session import choose as choose_module
from save_deploy.runtime.session import (
    ort,
)
from save_deploy.runtime.session.choose import choose
from save_deploy.runtime.session.ort_gpu import OrtGpuSession, with_options
from tests.runtime.engines import gpu, machine, with_engine, write_wav
from tests.runtime.test_sessions import inputs_of, opened


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


GPU = ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt_rtx"]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one: the driver is not found."""
    from save_deploy import machine as nvidia

    monkeypatch.setattr(nvidia, "CUDA_LIBRARY", "libcuda-absent.so.1")


def test_asking_for_a_gpu_says_what_is_missing(bundle: Path) -> None:
    """Exit 3, one message, no trace of it elsewhere: ONNX Runtime alone would use the CPU instead."""
    code = (
        "import json, sys; sys.modules['torch'] = None\n"
        "from save_deploy.errors import BackendError\n"
        "from save_deploy import machine as nvidia\n"
        "from save_deploy.runtime.pipeline import load\n"
        "nvidia.CUDA_LIBRARY = 'libcuda-absent.so.1'\n"
        "told = []\n"
        f"for backend in {GPU!r}:\n"
        "    try:\n"
        f"        load({str(bundle)!r}, backend=backend)\n"
        "    except BackendError as error:\n"
        "        told.append((error.exit_code, str(error)))\n"
        "print(json.dumps(told))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    for backend, (exit_code, told) in zip(GPU, json.loads(done.stdout), strict=True):
        missing = "libcuda-absent.so.1" if "onnxruntime" in backend else f"no engine of {backend}"
        assert exit_code == 3 and missing in told and "next:" in told


def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is said to see an L4; nothing else changes."""
    seen = lambda: Nvidia(machine().gpus, "580.65.06", "13.0")
    monkeypatch.setattr(ort, "read_nvidia", seen)
    monkeypatch.setattr(engine_check, "read_nvidia", seen)


@pytest.mark.skipif(bool(read_nvidia().gpus), reason="this machine has a GPU")
def test_a_missing_library_of_a_provider_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's own words; libcuda is what this machine lacks first."""
    with_gpu(monkeypatch)
    with pytest.raises(BackendError, match=r"library is missing(.|\n)*lib\w+\.so"):
        ort.require_provider(ort.CUDA)


@pytest.mark.parametrize("found", ["11.4.0", "9.3.0"])
def test_onnxruntime_needs_tensorrt_10(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    with_gpu(monkeypatch)
    monkeypatch.setattr("importlib.metadata.version", lambda name: found)
    with pytest.raises(BackendError, match=rf"needs TensorRT 10(.|\n)*TensorRT {found}"):
        ort.require_provider(ort.TENSORRT)


def test_a_provider_that_was_not_compiled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort.CPU])
    with pytest.raises(BackendError, match="this onnxruntime has no CUDA"):
        ort.require_provider(ort.CUDA)


def test_auto_takes_what_may_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    """Engine, then ONNX Runtime on a GPU, then the CPU; no GPU, no engine."""
    folder, manifest = with_engine(bundle, tmp_path)
    assert note_built_here(manifest.files["model.rtx.plan"].sha256, "by a test")
    assert choose("auto", folder, manifest).backend == "auto"  # no GPU here
    with_gpu(monkeypatch)
    monkeypatch.setattr(choose_module, "probe_machine", lambda *_: machine())
    chosen = choose("auto", folder, manifest)
    assert (chosen.backend, chosen.file) == ("tensorrt_rtx", "model.rtx.plan")
    assert choose("tensorrt_rtx", folder, manifest) == chosen
    with pytest.raises(BackendError, match=r"no engine of tensorrt\n(.|\n)*model.rtx.plan"):
        choose("tensorrt", folder, manifest)
    turing = machine(gpus=(gpu("T4", (7, 5)),))
    monkeypatch.setattr(choose_module, "probe_machine", lambda *_: turing)
    with pytest.raises(BackendError, match=r"model.rtx.plan cannot run here: engine of another"):
        choose("tensorrt_rtx", folder, manifest)
    monkeypatch.setattr(choose_module, "require_provider", lambda provider: None)
    assert choose("auto", folder, manifest).backend == "onnxruntime-cuda"

    def missing(provider: str) -> None:
        raise BackendError("a library is missing")

    monkeypatch.setattr(choose_module, "require_provider", missing)
    assert choose("auto", folder, manifest).backend == "auto"
    assert choose("openvino", folder, manifest).backend == "openvino"


def test_an_engine_of_elsewhere_is_not_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    """It is code: auto passes it over, asked for it is refused, unless its source is trusted or it was
    built here. What its manifest says of itself changes nothing."""
    folder, manifest = with_engine(bundle, tmp_path)
    (entry,) = manifest.engines
    manifest = replace(manifest, engines=({**entry, "version_compatible": True, "trust": True},))
    with_gpu(monkeypatch)
    monkeypatch.setattr(choose_module, "probe_machine", lambda *_: machine())
    assert choose("auto", folder, manifest).engine is None
    for judged in (choose("auto", folder, manifest, trust=True),
                   choose("tensorrt_rtx", folder, manifest, trust=True)):  # fmt: skip
        assert judged.file == "model.rtx.plan"
    manifest.write(folder)
    with pytest.raises(BackendError, match=r"not built on this machine(.|\n)*--trust-engine"):
        load(folder, backend="tensorrt_rtx")
    assert not built_here(manifest.files["model.rtx.plan"].sha256)
    note_built_here(manifest.files["model.onnx"].sha256, "another file")
    assert choose("auto", folder, manifest).engine is None


def test_comparison_trusts_an_engine_when_told(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    """save-compare refuses an engine of elsewhere as load() does, and passes --trust-engine on."""
    folder, _ = with_engine(bundle, tmp_path)
    with_gpu(monkeypatch)
    monkeypatch.setattr(choose_module, "probe_machine", lambda *_: machine())
    monkeypatch.setattr(plan, "_source", lambda *_: None)  # no eager model
    asked = CompareOptions((folder,), backends=("tensorrt_rtx",), threads=1)
    with pytest.raises(BackendError, match=r"not built on this machine(.|\n)*--trust-engine"):
        plan.make_plan(asked)
    opened = []
    monkeypatch.setattr(plan, "load", lambda _, **how: opened.append(how) or load(bundle))
    monkeypatch.setattr(entries, "load", lambda _, **how: opened.append(how) or load(bundle))
    (group,) = plan.make_plan(replace(asked, trust=True)).groups
    group.entries[0].open()
    assert [how["trust"] for how in opened] == [True, True]


@pytest.mark.parametrize("backend", ["tensorrt_rtx", *ort.PROVIDERS.values(), "abacus"])
def test_the_machine_is_judged_before_gigabytes_are_hashed(
    bundle: Path, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    folder, _ = with_engine(bundle, tmp_path)
    hashed = lambda *_: pytest.fail("files were hashed first")
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "verify", hashed)
        with pytest.raises(BackendError) as caught:
            load(folder, backend=backend)
    assert caught.value.exit_code == (1 if backend == "abacus" else 3)
    path = folder / "model.rtx.plan"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(choose_module, "probe_machine", lambda *_: machine())
    monkeypatch.setattr(choose_module, "require_provider", lambda provider: None)
    if backend != "abacus":  # where it could run, its file is what is wrong
        with pytest.raises(BundleError, match="altered"):
            load(folder, backend=backend, trust=True)


@pytest.mark.skipif(bool(read_nvidia().gpus), reason="this machine has a GPU")
@pytest.mark.parametrize("verb", ["mask", "doctor"])
def test_command_line_without_a_gpu(
    bundle: Path, tmp_path: Path, verb: str, record_property: Callable[[str, object], None]
) -> None:
    """A bundle with an engine: exit 3, the driver and its cure in the text, no CUDA error in sight."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("cuda.bindings.runtime")
    folder, _ = with_engine(bundle, tmp_path)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "frame.png")
    write_wav(tmp_path / "sound.wav")
    files = [tmp_path / "frame.png", tmp_path / "sound.wav", "-o", tmp_path / "mask.png"]
    command = [sys.executable, "-m", "save_deploy", verb, folder, *files[: 4 * (verb == "mask")]]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--backend", "tensorrt_rtx"], capture_output=True, text=True, timeout=120
    )
    record_property("seconds", round(time.perf_counter() - started, 2))
    assert done.returncode == 3, done.stderr
    for part in ("no usable NVIDIA GPU", "libcuda", "install NVIDIA's driver"):
        assert part in done.stderr
    assert "cudaError" not in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "mask.png").exists()


def test_binding_of_device_buffers(bundle: Path) -> None:
    """The GPU session with its buffers on the CPU: same logits, results stay valid, closes."""
    spec = Manifest.read(bundle).model
    with opened(bundle, "onnxruntime", threads=1) as session:
        inputs = [inputs_of(session, i) for i in range(2)]
        expected = [session.infer(i)["mask_logits"] for i in inputs]
    path = bundle / "model.onnx"
    with OrtGpuSession(path, spec, provider=ort.CPU, threads=1) as session:
        first = session.infer(inputs[0])["mask_logits"]
        np.testing.assert_array_equal(session.infer(inputs[1])["mask_logits"], expected[1])
        np.testing.assert_array_equal(first, expected[0])
    with pytest.raises(BackendError, match="closed"):
        session.infer(inputs[0])


def test_options_of_gpu_providers(tmp_path: Path) -> None:
    """No TF32 on CUDA; TensorRT is alone, so that what it cannot run is an error."""
    ((name, options),) = with_options(ort.CUDA, "fp32", None)
    assert name == ort.CUDA and options["use_tf32"] == "0" and options["enable_cuda_graph"] == "1"
    ((name, options),) = with_options(ort.TENSORRT, "int8", tmp_path)
    assert name == ort.TENSORRT and options["trt_engine_cache_enable"] == "True"
    assert options["trt_engine_cache_path"] == str(tmp_path)


@pytest.mark.parametrize(("precision", "fp16", "int8"), [
    ("fp32", False, False), ("fp16", True, False), ("int8", False, True), ("int8_fp16", True, True),
])  # fmt: skip
def test_tensorrt_provider_takes_the_bundles_precision(
    precision: str, fp16: bool, int8: bool
) -> None:
    """FP16 only where the bundle's floats are, INT8 only where its MatMuls are."""
    ((_, options),) = with_options(ort.TENSORRT, precision, None)
    assert options == {"trt_fp16_enable": str(fp16), "trt_int8_enable": str(int8)}


@pytest.mark.parametrize("precision", ["fp8", "fp8_fp16", "bf16"])
def test_tensorrt_provider_refuses_other_precisions(precision: str) -> None:
    with pytest.raises(BackendError, match=f"no option for this precision(.|\n)*{precision}"):
        with_options(ort.TENSORRT, precision, None)
    assert with_options(ort.CUDA, precision, None)


def test_every_precision_of_a_manifest_is_known() -> None:
    for precision in ("fp32", "fp16", "int8", "int8_fp16"):
        assert with_options(ort.TENSORRT, precision, None)


def test_falling_back_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checks before it left out, ONNX Runtime itself must not run the graph elsewhere."""
    monkeypatch.setattr(ort, "require_provider", lambda provider: None)
    for backend in ort.PROVIDERS.values():
        with pytest.raises(BackendError, match=r"cannot run model.onnx|fell back to another"):
            opened(bundle, backend, precision="fp16")
