"""Streaming histogram of |x| of one tensor, and the clip thresholds (amax) read from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import DataError

METHODS = ("minmax", "percentile", "entropy", "mse")
BINS = 2048
CHUNK = 1 << 18  # values at a time: temporaries stay in the cache
SMALLEST_RANGE = 2.0**-126  # least normal float32; below it everything shares the first bins
SMOOTHING = 1e-4  # share of the quantized distribution spread evenly, so that no bin is impossible
COARSE, FINE = 100, 41  # candidate thresholds of the two passes of mse


class Histogram:
    """|x| of one tensor in 2048 equal bins (i w, (i+1) w] under a power-of-two range.

    The range doubles when a larger value arrives: two bins become one, exactly, whatever the order
    of arrival. Exact zeros are counted apart. Max, sum |x| and sum x^2 are exact in float64."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._counts = np.zeros(1 + BINS, np.int64)  # [0]: exact zeros
        self._range = 0.0  # 0 until the first value that is not zero
        self._max = self._sum = self._sum_sq = 0.0

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    @property
    def width(self) -> float:
        """Of one bin."""
        return self._range / BINS

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Floats of any shape. Raises DataError on NaN or infinity; nothing is added then."""
        flat = values.ravel(order="K")  # a view wherever memory is contiguous
        if not flat.size:
            return
        top = max(abs(float(flat.max())), abs(float(flat.min())))  # both are NaN if any value is
        if not math.isfinite(top):
            raise DataError(
                f"{self.name} is not finite",
                got=f"{np.count_nonzero(~np.isfinite(flat))} of {flat.size} values are NaN or inf",
                expected="finite values: ranges are measured on the fp32 model",
            )
        self._grow(top)
        scale = BINS / self._range if self._range else 0.0
        for start in range(0, flat.size, CHUNK):
            x = np.abs(flat[start : start + CHUNK].astype(np.float64))
            self._sum += float(x.sum())
            self._sum_sq += float(x @ x)
            x *= scale  # exact: a power of two
            np.ceil(x, out=x)
            self._counts += np.bincount(x.astype(np.intp), minlength=1 + BINS)

    def _grow(self, top: float) -> None:
        self._max = max(self._max, top)
        if top > 0 and not self._range:
            self._range = max(_power_of_two(top), SMALLEST_RANGE)
        while self._range < top:
            pairs = self._counts[1:].reshape(-1, 2).sum(1)
            self._counts[1:] = 0
            self._counts[1 : 1 + BINS // 2] = pairs
            self._range *= 2

    def amax(self, method: str, *, levels: int = 127, percentile: float = 99.99) -> float:
        """Clip threshold, in (0, max]. levels: positive integers of the grid (127 for int8);
        percentile: in (0, 100]. Raises DataError when there is nothing but zeros, and on another
        method or percentile."""
        if method not in METHODS:
            raise DataError(
                "unknown calibration method", got=method, expected=f"one of {', '.join(METHODS)}"
            )
        if not 0 < percentile <= 100:
            raise DataError("percentile out of range", got=f"{percentile:g}", expected="(0, 100]")
        if not self.count:
            raise DataError(f"{self.name} was never seen", expected="at least one calibration pair")
        if self._max == 0:
            raise DataError(
                f"{self.name} was zero on all calibration pairs",
                got=f"{self.count} values, all zero",
                expected="a range to scale by",
                hint="use frames and sounds that vary, or more pairs",
            )
        if method == "minmax":
            return self._max
        if method == "percentile":  # when that share is exact zeros: the least threshold there is
            return min(max(self._quantile(percentile / 100), self.width), self._max)
        if method == "entropy":
            return min(self._least_divergence(1 + levels), self._max)
        return self._least_squares(levels)

    def _quantile(self, share: float) -> float:
        """Linear inside its bin, never above the maximum."""
        cumulated = np.cumsum(self._counts)
        rank = share * cumulated[-1]
        index = int(np.searchsorted(cumulated, rank))
        if index == 0:
            return 0.0
        index = min(index, BINS)
        before = cumulated[index - 1]
        inside = (rank - before) / max(cumulated[index] - before, 1)
        return min(float((index - 1 + inside) * self.width), self._max)

    def _least_squares(self, levels: int) -> float:
        """Threshold of the least squared error of the bin centers on a grid of 2 levels + 1."""
        filled = np.flatnonzero(self._counts[1:])
        weights = self._counts[1 + filled].astype(np.float64)
        centers = np.minimum((filled + 0.5) * self.width, self._max)

        def error(threshold: float) -> float:
            step = threshold / levels
            rounded = np.minimum(np.rint(centers / step), levels) * step
            return float(weights @ np.square(centers - rounded))

        # a step finer than a bin cannot be judged
        low = min(0.1 * self._max, levels * self.width)
        coarse = np.geomspace(low, self._max, COARSE)
        best = int(np.argmin([error(t) for t in coarse]))
        fine = np.linspace(coarse[max(best - 1, 0)], coarse[min(best + 1, COARSE - 1)], FINE)
        return min(float(min((*fine, coarse[best]), key=error)), self._max)

    def _least_divergence(self, groups: int) -> float:
        """Threshold (a multiple of bins) of the least KL divergence between the clipped histogram,
        outliers in its last bin, and the same in groups of bins, each spread over its filled bins.

        The quantized distribution is constant over the filled bins of a group, so the sums over
        bins are differences of cumulated ones and all candidates are evaluated at once. Exact
        zeros are left out: any threshold represents them."""
        counts = self._counts[1:].astype(np.float64)
        used = min(math.ceil(self._max / self.width), BINS)
        ends = np.arange(min(groups, used), used + 1)  # a candidate keeps bins [0, end)
        mass = np.concatenate([[0.0], np.cumsum(counts)])
        filled = np.concatenate([[0], np.cumsum(counts > 0)])
        neg_entropy = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
        total = mass[-1]

        edges = ends[:, None] * np.arange(groups + 1) // groups
        group_mass = np.diff(mass[edges], axis=1)
        group_filled = np.diff(filled[edges], axis=1)
        kept = np.maximum(mass[ends], 1.0)  # empty candidates: all is outlier, and it costs
        quantized = group_mass / np.maximum(group_filled, 1) / kept[:, None]
        quantized = (1 - SMOOTHING) * quantized + SMOOTHING / ends[:, None]

        last = counts[ends - 1]
        outliers = total - mass[ends]
        at_last = np.where(last > 0, quantized[:, -1], SMOOTHING / ends)
        reference = neg_entropy[ends] - _x_log_x(last) + _x_log_x(last + outliers)
        cross = (group_mass * np.log(quantized)).sum(1) + outliers * np.log(at_last)
        divergence = (reference - cross) / total - math.log(total)
        return float(ends[np.argmin(divergence)] * self.width)

    def summary(self) -> dict[str, float]:
        """For people: count, max, mean_abs, rms, percentiles of |x| and the share of exact zeros,
        to 5 significant digits (the count is exact)."""
        n = max(self.count, 1)
        values = {
            "max": self._max,
            "mean_abs": self._sum / n,
            "rms": math.sqrt(self._sum_sq / n),
            "p50": self._quantile(0.5),
            "p99": self._quantile(0.99),
            "p99_9": self._quantile(0.999),
            "p99_99": self._quantile(0.9999),
            "zeros": int(self._counts[0]) / n,
        }
        return {"count": self.count, **{k: float(f"{v:.5g}") for k, v in values.items()}}

    def state(self) -> dict[str, NDArray[Any]]:
        """All there is, as arrays: counts int64 (1+2048,) with exact zeros first, and moments float64
        (4,) = range, max, sum |x|, sum x^2."""
        moments = np.array([self._range, self._max, self._sum, self._sum_sq], np.float64)
        return {"counts": self._counts.copy(), "moments": moments}

    @classmethod
    def from_state(cls, name: str, state: dict[str, NDArray[Any]]) -> Histogram:
        """Continue where state() was taken. Raises DataError when it is no such state."""
        form = {"counts": (1 + BINS,), "moments": (4,)}
        shapes = {key: np.shape(state[key]) for key in form if key in state}
        fits = shapes == form and [state[key].dtype.name for key in form] == ["int64", "float64"]
        if not fits or state["counts"].min() < 0 or not np.isfinite(state["moments"]).all():
            raise DataError(
                f"the saved histogram of {name} is damaged",
                got=str(shapes),
                expected=f"{form}, int64 >= 0 and finite float64",
                hint="delete the saved state and start the calibration again",
            )
        made = cls(name)
        made._counts = state["counts"].copy()
        made._range, made._max, made._sum, made._sum_sq = map(float, state["moments"])
        return made


def _power_of_two(value: float) -> float:
    """The least one that is not below value."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 at 0."""
    return x * np.log(np.where(x > 0, x, 1.0))
