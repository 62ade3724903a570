"""auto takes the CPU backend that save-compare measured, only where the measurement says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from save_deploy.bundle import GRAPHS, Manifest
from save_deploy.cli.inspect import inspect_bundle
from save_deploy.metrics.disturbance import Disturbance
from save_deploy.metrics.latency import LatencyResult
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.compare import run
from save_deploy.runtime.compare.run import run_comparison
from save_deploy.runtime.compare.speed import Timing
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.session.compiled import keep
from save_deploy.runtime.session.measured import faster_backend, keep_faster
from save_deploy.runtime.session.open import preferred_backend
from tests.runtime.compare import options

pytest.importorskip("openvino")
QUIET = Disturbance(rounds=5, asked=5, of=2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def result(*ms: float, others: Disturbance | None = QUIET) -> LatencyResult:
    return LatencyResult(ms, 1, others)


FAST, SLOW = result(1.0, 1.1, 1.0, 1.2, 1.0), result(2.0, 2.1, 2.0, 2.2, 2.0)


def content(bundle: Path) -> str:
    manifest = Manifest.read(bundle)
    return manifest.content_of(GRAPHS[0], weight_files(bundle / GRAPHS[0], manifest.files))


def test_what_is_kept() -> None:
    for fast, slow in (("openvino", "onnxruntime"), ("onnxruntime", "openvino")):
        assert keep_faster("a", 2, {fast: FAST, slow: SLOW}) == fast
        assert faster_backend("a", 2) == fast
    assert faster_backend("b", 2) is None, "other weights"
    assert faster_backend("a", 1) is None, "other threads"


@pytest.mark.parametrize(
    "taken",
    [
        {"onnxruntime": FAST},
        {"onnxruntime": FAST, "tensorrt": SLOW},
        {"onnxruntime": result(1.0, 2.0, 1.0, 2.0), "openvino": result(2.0, 1.0, 2.0, 1.0)},
        {"onnxruntime": FAST, "openvino": result(*SLOW.samples_ms, others=None)},
        {
            "onnxruntime": FAST,
            "openvino": result(*SLOW.samples_ms, others=Disturbance(unknown="x")),
        },
        {
            "onnxruntime": FAST,
            "openvino": result(*SLOW.samples_ms, others=Disturbance(10, 5, 9, 1.0, 2)),
        },
    ],
    ids=["one", "an engine", "noise", "not watched", "not checked", "disturbed"],
)
def test_what_tells_nothing(taken: dict[str, LatencyResult]) -> None:
    assert keep_faster("a", 2, taken) is None and faster_backend("a", 2) is None


def test_an_older_choice_that_is_not_confirmed() -> None:
    keep_faster("a", 2, {"onnxruntime": FAST, "openvino": SLOW})
    keep_faster("a", 2, {"onnxruntime": FAST, "openvino": FAST})
    assert faster_backend("a", 2) is None


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b'{"backend": "abacus"}', b'{"backend": []}', b"\xff", b"[" * 99999]
)
def test_garbage_in_the_cache(text: bytes, cache: Path) -> None:
    """With a hash that is right, and without one."""
    keep_faster("a", 2, {"onnxruntime": FAST, "openvino": SLOW})
    (place,) = (cache / "faster").iterdir()
    assert keep(place, text)
    assert faster_backend("a", 2) is None
    place.write_bytes(text)
    assert faster_backend("a", 2) is None


def test_auto_takes_it_and_says_so(bundle_fp32: Path) -> None:
    usual = preferred_backend("fp32")
    other = "onnxruntime" if usual == "openvino" else "openvino"
    keep_faster(content(bundle_fp32), 1, {other: FAST, usual: SLOW})
    chosen = lambda **given: load(bundle_fp32, **{"threads": 1} | given)
    with chosen() as pipeline:
        assert pipeline.backend == pipeline.audio.backend == other
        assert pipeline.backend_text == f"{other} (measured by save-compare)"
    for given in ({"verify": False}, {"measured": False}, {"backend": usual}):
        with chosen(**given) as pipeline:
            assert pipeline.backend == pipeline.backend_text == usual


@pytest.mark.thorough
@pytest.mark.parametrize("others", [QUIET, Disturbance(10, 5, 9, 1.0, 2)])
def test_a_comparison_keeps_its_choice(
    bundle_fp32: Path, tiny_checkpoint: Path, others: Disturbance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(pool: Any, entries: Any, *_: Any, **__: Any) -> Timing:
        ms = {"eager": 9.0, "openvino": 2.0, "onnxruntime": 1.0}
        return Timing({e.name: LatencyResult((ms[e.backend],) * 5, 1, others) for e in entries})

    monkeypatch.setattr(run, "time_entries", timed)
    asked = options((bundle_fp32,), backends=("all",), checkpoints=(tiny_checkpoint,), threads=1)
    found = run_comparison(asked)
    kept = not others.disturbed
    assert faster_backend(content(bundle_fp32), 1) == ("onnxruntime" if kept else None)
    assert any("auto takes onnxruntime from now on" in n for n in found.notes) == kept


def test_inspect_names_the_measured_backend(
    bundle_fp32: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_bundle(bundle_fp32)
    assert "auto takes" not in capsys.readouterr().out
    keep_faster(content(bundle_fp32), None, {"openvino": SLOW, "onnxruntime": FAST})
    inspect_bundle(bundle_fp32)
    assert "auto takes onnxruntime on this machine, measured by" in capsys.readouterr().out
