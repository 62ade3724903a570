"""The golden self-test: an engine that is wrong is refused at every load, a right one is tested once.

The engine here is a stand-in: ONNX Runtime on the CPU answers under its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from save_deploy.bundle import Arrays, GraphSpec, Manifest
from save_deploy.errors import ParityError
from save_deploy.runtime import pipeline as pipeline_module
from save_deploy.runtime.engine_check import Machine
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.self_test import golden_parity
from save_deploy.runtime.session import GPU_BACKENDS, Session, open_session
from save_deploy.runtime.session import choose as choose_module
from save_deploy.runtime.session.open import EngineOptions
from tests.command import run
from tests.runtime.engines import machine, record_of, with_engine, write_wav

N_GOLDEN = 2  # samples of the bundle here


class StandIn:
    """A session named as a GPU backend that runs model.onnx on the CPU; `change` spoils its logits."""

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        change: Callable[[Any], Any],
        backend: str = "tensorrt_rtx",
    ) -> None:
        self.spec, self.change, self.calls, self.closed = spec, change, 0, False
        self.backend = backend
        self.session = open_session("onnxruntime", path.with_name("model.onnx"), spec, threads=1)

    def infer(self, inputs: Arrays) -> Arrays:
        self.calls += 1
        return {n: self.change(a) for n, a in self.session.infer(inputs).items()}

    def close(self) -> None:
        self.closed = True
        self.session.close()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Bench:
    """Loads the bundle with a stand-in engine on a machine that is said to have an L4."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, verdicts: Path) -> None:
        self.folder, self.verdicts = folder, verdicts
        self.change: Callable[[Any], Any] = lambda logits: logits
        self.machine: Machine = machine()
        self.engines: list[StandIn] = []
        self.options: list[dict[str, Any]] = []
        monkeypatch.setattr(choose_module, "probe_machine", lambda *_: self.machine)
        monkeypatch.setattr(choose_module, "require_provider", lambda provider: None)
        monkeypatch.setattr(choose_module, "trust_refusals", lambda *_, **__: [])
        monkeypatch.setattr(pipeline_module, "open_session", self.open)

    def open(self, backend: str, path: Path, spec: GraphSpec, **options: Any) -> Session:
        if backend not in GPU_BACKENDS:
            return open_session(backend, path, spec, **options)
        self.options.append(options)
        self.engines.append(StandIn(path, spec, self.change, backend))
        return self.engines[-1]

    def tested(self, backend: str = "tensorrt_rtx", **options: Any) -> int:
        """Load and close; how many samples the self-test ran."""
        with load(self.folder, backend=backend, **options) as pipeline:
            assert pipeline.backend == backend
        return self.engines[-1].calls

    def kept(self) -> list[Path]:
        return sorted(self.verdicts.iterdir()) if self.verdicts.is_dir() else []


@pytest.fixture
def bench(bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    folder, _ = with_engine(bundle_fp32, tmp_path)
    return Bench(folder, monkeypatch, tmp_path / "cache" / "self_test")


def test_tested_once_per_machine(bench: Bench) -> None:
    assert bench.tested() == N_GOLDEN  # golden samples
    (verdict,) = bench.kept()
    assert json.loads(verdict.read_text())["parity"]["n_frames"] == N_GOLDEN
    assert bench.tested() == 0
    assert bench.tested(self_test=True) == N_GOLDEN
    assert bench.tested(self_test=False) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"driver": "590.1"},
        {"gpus": (machine().gpus[0].__class__("RTX 4090", (8, 9), 24 << 30, 20 << 30),)},
    ],
)
def test_another_machine_is_tested_again(bench: Bench, changes: dict[str, Any]) -> None:
    bench.tested()
    bench.machine = machine(**changes)
    assert bench.tested() == N_GOLDEN and len(bench.kept()) == 2


def test_another_engine_is_tested_again(bench: Bench) -> None:
    bench.tested()
    manifest = Manifest.read(bench.folder)
    path = bench.folder / "model.rtx.plan"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    manifest.files[path.name] = record_of(path)
    manifest.write(bench.folder)
    assert bench.tested() == N_GOLDEN


@pytest.mark.parametrize(
    "change",
    [lambda logits: -logits, lambda logits: logits + 3, lambda logits: logits * np.nan],
    ids=["negated", "shifted", "nan"],
)
def test_a_wrong_engine_is_refused_every_time(bench: Bench, change: Any) -> None:
    """Exit 2, the sessions closed, no verdict kept; right again, it passes."""
    bench.change = change
    for _ in range(2):
        with pytest.raises(ParityError, match=r"parity budget|NaN") as caught:
            load(bench.folder)
        assert caught.value.exit_code == 2 and "next:" in str(caught.value)
        assert bench.engines[-1].closed and bench.kept() == []
    with load(bench.folder, self_test=False) as pipeline:
        assert pipeline.backend == "tensorrt_rtx"
    bench.change = lambda logits: logits
    assert bench.tested() == N_GOLDEN and bench.tested() == 0


def test_a_wrong_engine_loses_its_good_verdict(bench: Bench) -> None:
    bench.tested()
    bench.change = lambda logits: -logits
    with pytest.raises(ParityError, match=r"build model.rtx.plan again"):
        load(bench.folder, self_test=True)
    assert bench.kept() == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": {}}'])
def test_a_damaged_verdict_counts_for_nothing(bench: Bench, content: str) -> None:
    bench.tested()
    (verdict,) = bench.kept()
    verdict.write_text(content)
    assert bench.tested() == N_GOLDEN and bench.tested() == 0


def test_no_place_for_verdicts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", "/proc/nowhere")
    assert [bench.tested(), bench.tested()] == [N_GOLDEN, N_GOLDEN]


def test_a_full_disk_keeps_nobody_from_loading(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        assert bench.tested() == N_GOLDEN
    assert "was not stored" in caplog.text and bench.kept() == []
    assert bench.tested() == N_GOLDEN and bench.tested() == 0


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_onnxruntime_on_a_gpu_is_tested_too(
    bench: Bench, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per GPU, driver and version of what runs there."""
    assert [bench.tested(backend) for _ in range(2)] == [N_GOLDEN, 0]
    (verdict,) = bench.kept()
    key = json.loads(verdict.read_text())["key"]
    assert key["driver"] == "580.65.06" and key["gpu"][0] == "NVIDIA L4"
    assert key["library_version"].startswith(onnxruntime.__version__)
    assert {"model.onnx", "audio.onnx"} <= set(key["files"]) and "model.rtx.plan" not in key[
        "files"
    ]
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    assert bench.tested(backend) == N_GOLDEN
    bench.change = lambda logits: -logits
    bench.machine = machine(driver="590.1")
    with pytest.raises(ParityError, match="--no-self-test"):
        bench.tested(backend)
    assert bench.tested(backend, self_test=False) == 0


def test_weights_of_a_stripped_engine_come_from_the_graph(bench: Bench) -> None:
    assert bench.tested(self_test=False) == 0
    assert bench.options[-1]["engine"] == EngineOptions(host_code=False, refit_from=None)
    manifest = Manifest.read(bench.folder)
    (entry,) = manifest.engines
    stripped = {**entry, "options": {**entry["options"], "strip_weights": True}}
    stripped["version_compatible"] = True
    replace(manifest, engines=(stripped,)).write(bench.folder)
    bench.tested(self_test=False)
    assert bench.options[-1]["engine"] == EngineOptions(True, bench.folder / "model.onnx")


def test_verbs_can_leave_it_out(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "frame.png")
    write_wav(tmp_path / "sound.wav")
    files = (tmp_path / "frame.png", tmp_path / "sound.wav", "-o", tmp_path / "mask.png")
    asked = ("mask", bench.folder, *files, "--backend", "tensorrt_rtx")
    assert run(*asked, "--no-self-test").returncode == 0
    assert bench.engines[-1].calls == 1 and bench.kept() == []
    assert run(*asked, "--force").returncode == 0
    assert bench.engines[-1].calls == N_GOLDEN + 1 and len(bench.kept()) == 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_cpu_backends_when_asked(bundle_fp32: Path, backend: str, bench: Bench) -> None:
    load(bundle_fp32, backend=backend, self_test=True).close()
    assert bench.kept() == []


def test_a_changed_graph_fails_on_the_cpu_too(bundle_fp32: Path, bench: Bench) -> None:
    """Twin: the same bundle with a final product of other sign."""
    manifest = Manifest.read(bundle_fp32)
    with load(bundle_fp32, backend="onnxruntime") as pipeline:
        seen: list[int] = []
        count = lambda: seen.append(1)
        good = golden_parity(pipeline, bundle_fp32, manifest, hint="x", on_first=count)
        assert good.n_frames == N_GOLDEN and seen == [1]
        spoiled = SavePipeline(
            config=pipeline.config, precision="fp16", audio=pipeline.audio,
            model=StandIn(bundle_fp32 / "model.onnx", manifest.model, lambda a: 1 - a),
        )  # fmt: skip
        with pytest.raises(ParityError, match=r"parity budget(.|\n)*do that"):
            golden_parity(spoiled, bundle_fp32, manifest, hint="do that")


def test_wrong_sound_is_noticed(bundle_fp32: Path) -> None:
    manifest = Manifest.read(bundle_fp32)
    with load(bundle_fp32, backend="onnxruntime") as pipeline:
        embed = pipeline.embed
        pipeline.embed = lambda waveform: embed(waveform) + 1  # type: ignore[method-assign]
        with pytest.raises(ParityError, match="audio embedding differs"):
            golden_parity(pipeline, bundle_fp32, manifest, hint="x")
