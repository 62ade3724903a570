"""Latency statistics from raw samples: nearest-rank percentiles, throughput, noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from save_deploy.metrics.disturbance import Disturbance

STEADY = 0.1  # interquartile range over the median, at most


@dataclass(frozen=True)
class LatencyResult:
    """Raw samples in ms, one per call, in order. A call is a batch of `batch` frames.

    others: what other processes did to the samples, None when that was not watched.
    """

    samples_ms: tuple[float, ...]
    batch: int = 1
    others: Disturbance | None = None

    def percentile(self, q: float) -> float:
        """Return the nearest-rank percentile, q in (0,100]."""
        ordered = sorted(self.samples_ms)
        return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]

    @property
    def p50_ms(self) -> float:
        return self.percentile(50)

    @property
    def frames_per_s(self) -> float:
        """Frames per second of a single caller at the median latency."""
        return 1000.0 * self.batch / self.p50_ms

    @property
    def spread(self) -> float:
        """Interquartile range divided by the median; above STEADY the machine was noisy."""
        return (self.percentile(75) - self.percentile(25)) / self.p50_ms

    @property
    def withheld(self) -> str:
        """Why the samples may not be compared with others, "" when they may."""
        return self.others.reason if self.others else ""


def speedup(
    reference: LatencyResult, other: LatencyResult, *, interleaved: bool = True
) -> float | None:
    """Return how many times faster `other` is, None when other processes disturbed the timing.

    interleaved: the median ratio of samples of the same round, of one run. Otherwise the ratio of
        the medians.
    """
    if reference.withheld or other.withheld:
        return None
    if not interleaved:
        return reference.p50_ms / other.p50_ms
    ratios = sorted(a / b for a, b in zip(reference.samples_ms, other.samples_ms, strict=True))
    return _median(ratios)


def speedup_range(
    reference: LatencyResult, other: LatencyResult, *, interleaved: bool = True
) -> tuple[float, float]:
    """Return the lower and upper quartile of the speed-up. If 1 is between them, noise dominates.

    interleaved: quartiles of the ratios of each round. Otherwise, for runs one after another, the
        quartiles of both results are divided.
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
