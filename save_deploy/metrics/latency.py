"""Latency from raw samples: nearest-rank percentiles, throughput, noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LatencyResult:
    """Raw samples in ms of one call each, in the order taken; a call is a batch of `batch` frames."""

    samples_ms: tuple[float, ...]
    batch: int = 1

    def percentile(self, q: float) -> float:
        """Nearest-rank percentile, q in (0,100]."""
        ordered = sorted(self.samples_ms)
        return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]

    @property
    def p50_ms(self) -> float:
        return self.percentile(50)

    @property
    def frames_per_s(self) -> float:
        """Frames per second of one caller at the median latency."""
        return 1000.0 * self.batch / self.p50_ms

    @property
    def spread(self) -> float:
        """Interquartile range over the median: above 0.1 the machine was noisy."""
        return (self.percentile(75) - self.percentile(25)) / self.p50_ms


def speedup(reference: LatencyResult, other: LatencyResult) -> float:
    """Median of the ratios of samples taken in the same round; both must come from one run."""
    ratios = sorted(a / b for a, b in zip(reference.samples_ms, other.samples_ms, strict=True))
    return _median(ratios)


def speedup_range(
    reference: LatencyResult, other: LatencyResult, *, interleaved: bool = True
) -> tuple[float, float]:
    """Lower and upper quartile of the speed-up: where 1 lies between them, noise decides.

    Interleaved: of the ratios of each round. Else, of runs one after the other, the quartiles of both
    against each other.
    """
    if not interleaved:
        return (
            reference.percentile(25) / other.percentile(75),
            reference.percentile(75) / other.percentile(25),
        )
    pairs = zip(reference.samples_ms, other.samples_ms, strict=True)
    ratios = LatencyResult(tuple(a / b for a, b in pairs))
    return ratios.percentile(25), ratios.percentile(75)


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
