"""Streaming histogram of |x| of one tensor, and clip thresholds (amax) computed from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.calibration.methods import METHODS
from save_deploy.errors import DataError
from save_deploy.fields import check_word

BINS = 2048
CHUNK = 1 << 18  # values per step, so that temporaries fit into the CPU cache
SMALLEST_RANGE = 2.0**-126  # smallest normal float32; smaller values share the first bins
SMOOTHING = 1e-4  # uniform share of the quantized distribution, so that no bin has probability 0
COARSE, FINE = 100, 41  # candidate thresholds in the coarse and fine pass of mse


class Histogram:
    """Histogram of |x| of one tensor: 2048 equal bins (i w, (i+1) w] over a power-of-two range.

    The range doubles when a larger value arrives: pairs of bins are added, which is exact and
    independent of the order of the values. Exact zeros are counted separately. Maximum, sum |x| and
    sum x^2 are accumulated in float64.
    """

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
        """Width of one bin."""
        return self._range / BINS

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Add floats of any shape. Raises DataError on NaN or infinity, and then adds nothing."""
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
        """Return the clip threshold, in (0, max].

        levels: number of positive integer levels (127 for int8).
        percentile: in (0, 100].
        Raises DataError when all values are zero or none were added, and for an unknown method or a
        percentile out of range.
        """
        check_word("calibration method", method, METHODS, DataError)
        if not 0 < percentile <= 100:
            raise DataError("percentile out of range", got=f"{percentile:g}", expected="(0, 100]")
        if not self.count:
            raise DataError(f"{self.name} has no values", expected="at least one calibration pair")
        if self._max == 0:
            raise DataError(
                f"{self.name} was zero on all calibration pairs",
                got=f"{self.count} values, all zero",
                expected="a range greater than 0",
                hint="use other frames and sounds, or more pairs",
            )
        if method == "minmax":
            return self._max
        if method == "percentile":  # at least one bin width, even when the percentile is 0
            return min(max(self._quantile(percentile / 100), self.width), self._max)
        if method == "entropy":
            return min(self._least_divergence(1 + levels), self._max)
        return self._least_squares(levels)

    def _quantile(self, share: float) -> float:
        """Return the quantile of |x|, interpolated linearly within a bin, at most the maximum."""
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
        """Return the threshold with the least squared quantization error on a grid of 2 levels + 1.

        Every value is represented by the center of its bin.
        """
        filled = np.flatnonzero(self._counts[1:])
        weights = self._counts[1 + filled].astype(np.float64)
        centers = np.minimum((filled + 0.5) * self.width, self._max)

        def error(threshold: float) -> float:
            step = threshold / levels
            rounded = np.minimum(np.rint(centers / step), levels) * step
            return float(weights @ np.square(centers - rounded))

        # the histogram cannot resolve a quantization step smaller than a bin
        low = min(0.1 * self._max, levels * self.width)
        coarse = np.geomspace(low, self._max, COARSE)
        best = int(np.argmin([error(t) for t in coarse]))
        fine = np.linspace(coarse[max(best - 1, 0)], coarse[min(best + 1, COARSE - 1)], FINE)
        return min(float(min((*fine, coarse[best]), key=error)), self._max)

    def _least_divergence(self, groups: int) -> float:
        """Return the threshold, a multiple of the bin width, with the least KL divergence.

        The divergence is from the clipped histogram, with outliers added to its last bin, to the
        quantized one: the same counts in `groups` groups of bins, each group spread evenly over its
        non-empty bins.

        The quantized distribution is constant over the non-empty bins of a group, so sums over bins
        are differences of cumulative sums and all candidates are evaluated at once. Exact zeros are
        left out because every threshold represents them.
        """
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
        kept = np.maximum(mass[ends], 1.0)  # no value in range: everything is an outlier, high cost
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
        """Return statistics for reports, rounded to 5 significant digits; the count is exact.

        Keys: count, max, mean_abs, rms, percentiles of |x|, and `zeros`, the share of exact zeros.
        """
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
        """Return the full state as arrays.

        counts: int64 (1+2048,), exact zeros first.
        moments: float64 (4,): range, max, sum |x|, sum x^2.
        """
        moments = np.array([self._range, self._max, self._sum, self._sum_sq], np.float64)
        return {"counts": self._counts.copy(), "moments": moments}

    @classmethod
    def from_state(cls, name: str, state: dict[str, NDArray[Any]]) -> Histogram:
        """Create a histogram from the arrays of state().

        Raises DataError when they are not valid.
        """
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
    """Return the smallest power of two >= value."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x log x, with 0 at x = 0."""
    return x * np.log(np.where(x > 0, x, 1.0))
