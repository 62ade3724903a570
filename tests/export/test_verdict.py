"""The verdict on INT8 from made-up timings, and which graphs a table is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from save_deploy.config import SaveConfig
from save_deploy.export import prove as module
from save_deploy.export.options import ExportOptions
from save_deploy.export.prove import Proved, choose_entries
from save_deploy.export.quantize.explain import FP8_NOTE, explain_lines, weakest_blocks
from save_deploy.export.quantize.search import SearchResult
from save_deploy.export.quantize.trial import Scored
from save_deploy.metrics.latency import LatencyResult, speedup_range
from save_deploy.metrics.parity import ParityResult
from save_deploy.metrics.segmentation import score_videos
from save_deploy.runtime.compare.entries import Entry, GraphFile
from save_deploy.runtime.compare.rows import Row
from save_deploy.runtime.kernels import KernelCheck

OPTIONS = ExportOptions(precision="int8")
CONFIG = SaveConfig.preset("vit_t", res=256)
CHECK = KernelCheck("onnxruntime", 27, 27, (), {"i8": 27})
SCORE = score_videos([(np.ones((1, 4, 4), np.float32), np.ones((1, 4, 4), bool))])


def noisy(ms: float, noise: float, n: int = 20, seed: int = 0) -> LatencyResult:
    rng = np.random.default_rng(seed)
    return LatencyResult(tuple(ms * (1 + noise * rng.standard_normal(n))))


def row(precision: str, taken: LatencyResult, backend: str = "onnxruntime") -> Row:
    parity = None if backend == "eager" else ParityResult(0.1, 0.99, 0.001, 20.0, 1)
    return Row(backend, precision, 1.0, taken, 2.0, SCORE, parity)


def speed_line(
    fp32: LatencyResult, int8: LatencyResult, *, interleaved: bool = True, low: bool = False
) -> str:
    rows = [row("fp32", fp32, "eager"), row("fp32", fp32), row("fp16", fp32), row("int8", int8)]
    graph = GraphFile(Path("x"), CONFIG, 1, low_memory=low)
    entries = [Entry(p, "onnxruntime", p, 1.0, graph=graph) for p in ("fp32", "fp16")]
    proved = Proved(entries, rows, [], {}, interleaved)
    return explain_lines(proved, [CHECK], [20.0], None, OPTIONS)[0]


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("int8_ms", "noise", "told"),
    [
        (50.0, 0.05, "2."),
        (99.0, 0.05, "about as fast as fp32 ("),
        (101.0, 0.05, "about as fast as fp32 ("),
        (99.0, 0.0005, "1.01 x fp32"),
        (150.0, 0.05, "NOT faster than fp32: 0.6"),
    ],
)
def test_faster_only_beyond_the_noise(
    int8_ms: float, noise: float, told: str, interleaved: bool
) -> None:
    line = speed_line(
        noisy(100, noise), noisy(int8_ms, noise, seed=1), interleaved=interleaved
    )  # fmt: skip
    assert line.startswith(told) or (told == "2." and line.startswith("1.9")), line


def test_runs_of_different_lengths_are_compared_by_quartiles() -> None:
    low, high = speedup_range(noisy(100, 0.1, 9), noisy(50, 0.1, 30, seed=2), interleaved=False)
    assert 1.5 < low < 2 < high < 2.6


def test_a_mapped_float_graph_is_told() -> None:
    line = speed_line(noisy(100, 0.01), noisy(50, 0.01, seed=1), interleaved=False, low=True)
    assert "fp32 ran with its weights mapped" in line


SEARCH = SearchResult(
    max_drop=0.5, data="stamps val", clips=4, frames=20, backend="openvino",
    eager=Scored(75, 0.9, 1), full=Scored(75, 0.9, 1), chosen=Scored(75, 0.9, 1),
    float_units=("blocks.0.attn", "blocks.0.mlp"), units=2, sensitivity=(), cost_unit="ms",
    saved={"attn": 1.0, "mlp": 2.0}, cost={"quantized": 10, "float": 13}, evaluations=1, reused=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("saved", "told", "untold"),
    [
        ({"attn": 1.0, "mlp": 2.0}, ["budget of 0.5 M_J points allows none in INT8"], "faster"),
        (
            {"attn": -1.0, "mlp": 0.0},
            ["INT8 makes no attn or mlp faster on openvino", "no 8-bit dot", "--search-cost work"],
            "budget",
        ),
        (
            {"attn": -1.0, "mlp": 2.0},
            ["no attn faster on openvino", "budget of 0.5 M_J points allows none of the others"],
            "mlp",
        ),
    ],
)
def test_why_nothing_is_quantized(
    saved: dict[str, float], told: list[str], untold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("save_deploy.export.quantize.explain.has_int8_dot_product", lambda: False)
    taken = noisy(100, 0.01)
    proved = Proved([], [row("fp32", taken, "eager"), row("int8", taken)], [], {}, True)
    found = replace(SEARCH, saved=saved)
    line = explain_lines(proved, [], [20.0], found, OPTIONS)[0]
    assert all(words in line for words in told) and untold not in line


def test_fp8_tells_when_nothing_is_quantized() -> None:
    options = ExportOptions(precision="fp8")
    taken = noisy(100, 0.01)
    proved = Proved([], [row("fp32", taken, "eager"), row("fp8", taken)], [], {}, True)
    none = explain_lines(proved, [], [20.0], SEARCH, options)[0]
    assert none == "nothing is quantized: the budget of 0.5 M_J points allows none in FP8"
    some = replace(SEARCH, float_units=("blocks.0.mlp",))
    assert explain_lines(proved, [], [20.0], some, options)[0] == FP8_NOTE


def test_what_was_not_measured_is_told() -> None:
    taken = noisy(100, 0.01)
    rows = [row("fp32", taken, "eager"), row("int8", taken, "openvino"), row("int8", taken)]
    checks = [KernelCheck(b, 27, 27, (), {}) for b in ("openvino", "onnxruntime")]
    lines = explain_lines(Proved([], rows, [], {}, False), checks, [], None, OPTIONS)
    assert all("no float graph was measured" in line for line in lines[:2])
    assert lines[2].startswith(
        "not measured: FP32 on onnxruntime, FP32 on openvino, the FP16 graph, signal to noise"
    )
    assert lines[3].startswith("masks agree")


def test_weakest_blocks() -> None:
    assert weakest_blocks([30.0, None, 12.34, 40.0, 25.0]) == (
        "lowest signal to noise: block 2 12.3 dB, block 4 25.0 dB, block 0 30.0 dB"
    )
    assert weakest_blocks([]) == weakest_blocks([None]) == ""


def test_entries_of_a_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float graph that does not fit runs on ONNX Runtime alone, mapped; the INT8 one fits."""
    monkeypatch.setattr(module, "available_backends", lambda: ("openvino", "onnxruntime"))
    monkeypatch.setattr(module, "fits", lambda path: path.name == "model.onnx")
    compared = [("fp32", tmp_path / "fp32.onnx")]
    found = choose_entries(OPTIONS, CONFIG, compared, tmp_path, large=True)
    assert [(e.backend, e.precision, e.graph.low_memory) for e in found] == [
        ("onnxruntime", "fp32", True),
        ("openvino", "int8", False),
        ("onnxruntime", "int8", False),
    ]
    monkeypatch.setattr(module, "fits", lambda path: True)
    assert len(choose_entries(OPTIONS, CONFIG, compared, tmp_path, large=True)) == 4
    half = choose_entries(ExportOptions(precision="fp16"), CONFIG, [], tmp_path, large=True)
    assert [(e.backend, e.graph.low_memory) for e in half] == [("onnxruntime", True)]
