"""The doctor: providers are tried, not listed; a bundle's backends each get a reason and a cure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from save_deploy.cli.doctor import doctor
from save_deploy.errors import BackendError, BundleError, SaveDeployError
from save_deploy.machine import read_nvidia
from save_deploy.runtime import doctor as doctor_module
from save_deploy.runtime.doctor import Trial, examine, run_trials
from save_deploy.runtime.engine_trust import note_built_here
from tests.runtime.engines import gpu, machine, with_engine

WORKING = (Trial("CPUExecutionProvider", True, "CPUExecutionProvider", ""),)
no_gpu = pytest.mark.skipif(bool(read_nvidia().gpus), reason="this machine has a GPU")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what the trials and the probe of the machine say."""

    def say(trials: tuple[Trial, ...] = WORKING, **changes: Any) -> None:
        monkeypatch.setattr(doctor_module, "run_trials", lambda: trials)
        monkeypatch.setattr(doctor_module, "probe_machine", lambda: machine(**changes))

    return say


@pytest.mark.slow
@no_gpu
def test_providers_are_tried_not_listed() -> None:
    """onnxruntime lists CUDA as available on a machine without a GPU."""
    import onnxruntime

    found = {trial.name: trial for trial in run_trials()}
    assert set(onnxruntime.get_available_providers()) <= set(found)
    assert found["CPUExecutionProvider"].works and found["OpenVINO CPU"].works
    for name in set(found) - {"CPUExecutionProvider", "OpenVINO CPU"}:
        assert not found[name].works and "libcuda" in found[name].problem
        assert found[name].active == "CPUExecutionProvider"


@pytest.mark.slow
@pytest.mark.parametrize(("code", "problem"), [
    ("print('\"OtherProvider\"')", "ran on OtherProvider"),
    ("import sys; sys.exit('no such thing')", "no such thing"),
    ("import os; os.abort()", "ran on nothing"),
    ("import time; time.sleep(60)", "no answer in 1 s"),
])  # fmt: skip
def test_a_trial_may_crash_or_hang(
    monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    monkeypatch.setattr(doctor_module, "_TRIAL_TIMEOUT_S", 1 if "sleep" in code else 60)
    trial = doctor_module._result("Some", "Some", doctor_module._start(code))
    assert not trial.works and problem in trial.problem


@no_gpu
def test_a_normal_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No GPU: both CPU backends run, the others say why not and what to do; exit 0."""
    doctor(bundle, json_out=tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    runs = {answer["backend"]: answer["runs"] for answer in found["answers"]}
    assert runs == {
        "onnxruntime": True, "openvino": True, "onnxruntime-cuda": False,
        "onnxruntime-tensorrt": False, "tensorrt": False, "tensorrt_rtx": False,
    }  # fmt: skip
    for answer in found["answers"]:
        assert all(r["cure"] and r["what"] for r in answer["refusals"])
        assert answer["runs"] is (not answer["refusals"])
    size = sum((bundle / n).stat().st_size for n in ("model.onnx", "model.onnx.data")
               if (bundle / n).exists())  # fmt: skip
    assert found["answers"][1]["memory_bytes"] == int(2.5 * size)
    text = capsys.readouterr().out
    first, empty, second = text.splitlines()[:3]
    assert first.split() == ["runs", "on", "onnxruntime,", "openvino"] and empty == ""
    assert second.startswith("can run    onnxruntime")
    assert "libcuda" in text and "can run    openvino" in text and "next: " in text
    assert found["computer"]["cores"] >= 1 and "onnxruntime" in " ".join(found["packages"])


def test_asked_backend_decides(bundle: Path, quick: Callable[..., None]) -> None:
    quick(gpus=(), problem="no NVIDIA driver")
    doctor(bundle, backend="onnxruntime")
    with pytest.raises(BackendError, match=r"on tensorrt: the bundle has none(.|\n)*next:") as got:
        doctor(bundle, backend="tensorrt")
    assert got.value.exit_code == 3
    with pytest.raises(BackendError, match="unknown backend"):
        doctor(bundle, backend="abacus")
    with pytest.raises(SaveDeployError, match="needs a bundle") as usage:
        doctor(None, backend="tensorrt")
    assert usage.value.exit_code == 1


def test_engines_are_checked(
    bundle: Path, tmp_path: Path, quick: Callable[..., None], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    folder, manifest = with_engine(bundle, tmp_path)
    quick()
    with pytest.raises(BackendError, match=r"not built on this machine(.|\n)*--trust-engine"):
        doctor(folder, backend="tensorrt_rtx")
    note_built_here(manifest.files["model.rtx.plan"].sha256, "by a test")
    doctor(folder, backend="tensorrt_rtx")
    assert "can run    tensorrt-rtx (model.rtx.plan, about 2 MiB)" in capsys.readouterr().out
    quick(gpus=(gpu("T4", (7, 5)),))
    with pytest.raises(BackendError, match=r"tensorrt-rtx: engine of another compute(.|\n)*SM75"):
        doctor(folder, backend="tensorrt_rtx")


def test_nothing_runs(
    bundle: Path, quick: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No backend at all is exit 3, with the nearest one's cure."""
    quick((Trial("CPUExecutionProvider", False, "", "libfoo.so: not found"),), gpus=())
    with pytest.raises(BackendError, match=r"on any backend(.|\n)*libfoo") as caught:
        doctor(bundle)
    assert caught.value.exit_code == 3
    quick()
    nothing_free = psutil.virtual_memory()._replace(available=1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: nothing_free)
    with pytest.raises(BackendError, match="not enough memory"):
        doctor(bundle, backend="onnxruntime")


def test_an_altered_bundle_is_no_matter_of_backends(
    bundle: Path, tmp_path: Path, quick: Callable[..., None]
) -> None:
    quick()
    folder, _ = with_engine(bundle, tmp_path)
    path = folder / "model.rtx.plan"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(BundleError, match=r"altered(.|\n)*model.rtx.plan"):
        doctor(folder)


def test_machine_alone(quick: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    quick(gpus=(gpu(), gpu("NVIDIA T4", (7, 5))))
    doctor(None)
    text = capsys.readouterr().out
    assert "GPU 0      NVIDIA L4, SM89, 24.0 GiB, 20.0 GiB free (engines are" in text
    assert "GPU 1      NVIDIA T4, SM75" in text and "driver     580.65.06, up to CUDA 13.0" in text
    assert text.splitlines()[:2] == [
        "on the CPU onnxruntime",
        "on a GPU   tensorrt-rtx, tensorrt",
    ]
    assert examine().answers == ()
    cuda = Trial("CUDAExecutionProvider", True, "CUDAExecutionProvider", "")
    quick((cuda,), gpus=(gpu(),), libraries={"tensorrt_rtx": "1.7"})
    doctor(None)
    assert capsys.readouterr().out.splitlines()[:2] == [
        'on the CPU nothing: pip install "save-deploy[cpu]"',
        "on a GPU   onnxruntime-cuda, tensorrt-rtx",
    ]
    quick(gpus=(gpu(),), libraries={})
    doctor(None)
    assert "on a GPU   nothing: see what" in capsys.readouterr().out
    quick(gpus=())
    doctor(None)
    assert "on a GPU   no NVIDIA GPU here" in capsys.readouterr().out


@pytest.mark.slow
def test_no_torch_is_imported() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import save_deploy.cli.doctor as d; d.doctor(None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "torch " in done.stdout
