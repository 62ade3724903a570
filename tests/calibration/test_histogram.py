"""Histogram and thresholds against raw samples: brute force, np.percentile, a plain KL loop."""

from __future__ import annotations

import io
import math
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from save_deploy.calibration.histogram import BINS, CHUNK, SMOOTHING, Histogram
from save_deploy.calibration.methods import METHODS
from save_deploy.errors import DataError

Samples = NDArray[np.floating[Any]]


def samples(kind: str, n: int = 100_000) -> Samples:
    rng = np.random.default_rng(7)
    gaussian = rng.standard_normal(n)
    return {
        "gaussian": gaussian,
        "laplace": rng.laplace(size=n),
        "outliers": np.concatenate([gaussian, rng.uniform(20, 30, 20)]),
        "one outlier": np.concatenate([gaussian, [60.0]]),
        "student": rng.standard_t(3, size=n),
        "uniform": rng.uniform(-1, 1, n),
    }[kind]


def of(values: Samples, *, name: str = "blocks.0.attn.qkv") -> Histogram:
    histogram = Histogram(name)
    histogram.add(values)
    return histogram


def rounding_error(values: Samples, threshold: float, levels: int) -> float:
    """Mean squared error of symmetric rounding, on the samples themselves."""
    step = threshold / levels
    return float(np.mean((values - np.clip(np.round(values / step), -levels, levels) * step) ** 2))


@pytest.mark.parametrize("levels", [127, 31, 7])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "outliers", "one outlier", "student"])
def test_mse_is_the_brute_force_optimum(kind: str, levels: int) -> None:
    values = samples(kind)
    candidates = np.abs(values).max() * np.linspace(0.01, 1, 300)
    optimum = min(rounding_error(values, t, levels) for t in candidates)
    threshold = of(values).amax("mse", levels=levels)
    assert rounding_error(values, threshold, levels) <= 1.03 * optimum
    # the check can fail: the optimum is not flat
    assert rounding_error(values, threshold / 3, levels) > 1.03 * optimum


@pytest.mark.parametrize("percentile", [1.0, 50.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "outliers", "uniform"])
def test_percentile_is_numpys(kind: str, percentile: float) -> None:
    values = samples(kind)
    histogram = of(values)
    wanted = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    found = histogram.amax("percentile", percentile=percentile)
    assert abs(found - wanted) <= histogram.width * (1 + 1e-9)
    assert 0 < found <= histogram.amax("minmax")


def test_percentile_is_linear_inside_a_bin() -> None:
    histogram = of(np.linspace(0, 1, 1_000_001))
    assert histogram.width == 1 / BINS  # 1 is a power of two itself
    for percentile in (10.01, 33.3, 99.99):
        found = histogram.amax("percentile", percentile=percentile)
        assert found == pytest.approx(percentile / 100, abs=0.02 / BINS)


def test_percentile_counts_zeros() -> None:
    values = np.concatenate([np.zeros(900), np.linspace(0.01, 1, 100)])
    histogram = of(values)
    assert histogram.amax("percentile", percentile=95) == pytest.approx(0.505, abs=0.011)
    # the median is 0, which no scale can be
    assert histogram.amax("percentile", percentile=50) == histogram.width
    assert histogram.summary()["zeros"] == 0.9
    assert histogram.summary()["p50"] == 0


def plain_divergence(histogram: Histogram, groups: int) -> NDArray[np.float64]:
    """KL of every candidate, bin by bin as the method is described."""
    counts = histogram.state()["counts"][1:].astype(float)
    used = math.ceil(histogram.amax("minmax") / histogram.width)
    found = np.full(used + 1, np.inf)
    for end in range(groups, used + 1):
        reference = counts[:end].copy()
        reference[-1] += counts[end:].sum()
        reference /= reference.sum()
        expanded = np.zeros(end)
        for members in np.split(np.arange(end), [end * g // groups for g in range(1, groups)]):
            filled = members[counts[members] > 0]
            if len(filled):
                expanded[filled] = counts[members].sum() / len(filled)
        expanded = (1 - SMOOTHING) * expanded / counts[:end].sum() + SMOOTHING / end
        there = reference > 0
        found[end] = (reference[there] * np.log(reference[there] / expanded[there])).sum()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("levels", [127, 31])
@pytest.mark.parametrize("kind", ["gaussian", "outliers", "uniform"])
def test_entropy_is_the_least_divergence(kind: str, levels: int) -> None:
    histogram = of(samples(kind, 20_000))
    divergence = plain_divergence(histogram, levels + 1)
    end = round(histogram.amax("entropy", levels=levels) / histogram.width)
    end = min(end, len(divergence) - 1)
    assert divergence[end] == pytest.approx(divergence.min(), rel=1e-9)


def test_entropy_clips_outliers_and_keeps_a_uniform() -> None:
    clipped = of(samples("one outlier")).amax("entropy")
    assert 2.5 < clipped < 10  # the outlier is at 60
    uniform = of(samples("uniform"))
    assert 0.98 < uniform.amax("entropy") <= uniform.amax("minmax") <= 1


def test_growth_equals_the_final_range_at_once() -> None:
    rng = np.random.default_rng(1)
    pieces = [rng.standard_normal(5000) * s for s in (1e-3, 0.0, 1.0, 0.1, 700.0, 3.0)]
    pieces += [np.array([1.0, 2.0, 1024.0])]  # on bin edges, the last one on the range's
    grown, once = Histogram("a"), of(np.concatenate(pieces[::-1]))
    for piece in pieces:
        grown.add(piece)
    ours, wanted = grown.state(), once.state()
    assert ours["counts"].tobytes() == wanted["counts"].tobytes()
    assert ours["counts"].sum() == grown.count == 30_003
    np.testing.assert_allclose(ours["moments"], wanted["moments"], rtol=1e-12)


def test_counts_are_those_of_the_samples() -> None:
    """Bin k holds k w < |x| <= (k + 1) w, counted with sorted samples."""
    values = samples("laplace", 3 * CHUNK + 11)
    histogram = of(values)
    magnitude = np.sort(np.abs(values))
    edges = np.arange(BINS + 1) * histogram.width
    below = np.searchsorted(magnitude, edges, side="right")
    assert (np.diff(below) == histogram.state()["counts"][1:]).all()
    assert histogram.amax("minmax") == magnitude[-1]
    assert histogram.width * BINS == 2 ** math.ceil(math.log2(magnitude[-1]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pieces_equal_all_at_once(dtype: type) -> None:
    values: Samples = samples("gaussian", 4096).astype(dtype)
    pieces = Histogram("a")
    for piece in np.split(values, 16):
        pieces.add(piece.reshape(4, 64).T)
    once = of(values.reshape(2, 8, 256))
    assert (pieces.state()["counts"] == once.state()["counts"]).all()
    assert pieces.summary() == once.summary()
    assert [pieces.amax(m) for m in METHODS] == [once.amax(m) for m in METHODS]


def test_summary() -> None:
    values = samples("gaussian", 123_457)
    found = of(values).summary()
    magnitude = np.abs(values)
    assert found["count"] == 123_457
    assert found["max"] == float(f"{magnitude.max():.5g}")
    assert found["mean_abs"] == float(f"{magnitude.mean():.5g}")
    assert found["rms"] == float(f"{np.sqrt(np.mean(values**2)):.5g}")
    for key, percentile in (("p50", 50), ("p99", 99), ("p99_9", 99.9), ("p99_99", 99.99)):
        assert found[key] == pytest.approx(np.percentile(magnitude, percentile), abs=0.01)
    assert found["zeros"] == 0


def test_state_round_trip() -> None:
    values = samples("student")
    file = io.BytesIO()
    first = of(values[:60_000])
    state = first.state()
    first.add(values)  # a state is a copy
    np.savez(file, **state)
    file.seek(0)
    resumed = Histogram.from_state("a", dict(np.load(file, allow_pickle=False)))
    resumed.add(values[60_000:])
    straight = of(values[:60_000])
    straight.add(values[60_000:])
    assert resumed.summary() == straight.summary()
    assert [resumed.amax(m) for m in METHODS] == [straight.amax(m) for m in METHODS]


def test_damaged_state_is_refused() -> None:
    state = of(samples("gaussian")).state()
    broken: list[dict[str, NDArray[Any]]] = [
        {"counts": state["counts"]},
        {**state, "counts": state["counts"][:-1]},
        {**state, "counts": state["counts"].astype(float)},
        {**state, "counts": -state["counts"]},
        {**state, "moments": state["moments"] * np.nan},
    ]
    for damaged in broken:
        with pytest.raises(DataError, match=r"blocks\.1\.mlp\.lin1 is damaged"):
            Histogram.from_state("blocks.1.mlp.lin1", damaged)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    histogram = of(np.ones(5), name="neck.0")
    before = histogram.state()
    values = np.full(CHUNK + 3, 9.0, np.float32)
    values[[0, -1]] = bad
    with pytest.raises(DataError, match=r"neck\.0 is not finite\n.* 2 of 262147"):
        histogram.add(values)
    after = histogram.state()
    assert all((after[key] == before[key]).all() for key in before)


def test_zero_tensor_is_refused() -> None:
    histogram = of(np.zeros((3, 4)), name="audio.fc")
    for method in METHODS:
        with pytest.raises(DataError, match=r"audio\.fc was zero on all") as caught:
            histogram.amax(method)
        assert "use other frames" in caught.value.hint
    assert histogram.summary()["zeros"] == 1 and histogram.summary()["max"] == 0
    with pytest.raises(DataError, match="has no values"):
        of(np.zeros(0)).amax("minmax")


def test_unknown_method_and_percentile_are_refused() -> None:
    histogram = of(np.ones(3))
    with pytest.raises(DataError, match="minmax, percentile, entropy, mse"):
        histogram.amax("max")
    for percentile in (0.0, 100.1, math.nan):
        with pytest.raises(DataError, match="percentile out of range"):
            histogram.amax("percentile", percentile=percentile)


@pytest.mark.parametrize("value", [1.0, 0.75, 3.3e38, 1e-40, 1e-300])
def test_constant_keeps_its_value(value: float) -> None:
    """No threshold above the only value there is, none that changes it by more than a bin."""
    histogram = of(np.full(1000, value))
    for method in METHODS:
        assert 0 < histogram.amax(method) <= value
    assert histogram.amax("minmax") == value
    step = histogram.amax("mse") / 127
    assert abs(value - min(round(value / step), 127) * step) <= histogram.width


def test_is_fast() -> None:
    values = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    start = time.perf_counter()
    histogram = of(values)
    added = time.perf_counter()
    histogram.amax("entropy")
    histogram.amax("mse")
    assert added - start < 2 and time.perf_counter() - added < 1  # 0.02 and 0.01 s on one idle core
