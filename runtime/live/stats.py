"""Counts and delays of a live run. Memory does not grow with its length."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

IN_STEP_MS = 100
_BINS = 60_000  # bins of 1 ms; the last one also counts larger delays


class Delays:
    """Histogram of delays with bins of 1 ms."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS + 1, np.int64)

    def add(self, seconds: float) -> None:
        self._counts[min(max(round(1000 * seconds), 0), _BINS)] += 1

    def percentile_ms(self, q: float) -> int:
        """Return the nearest-rank percentile in ms; 0 without delays."""
        ranks = np.cumsum(self._counts)
        return int(np.searchsorted(ranks, max(1, np.ceil(ranks[-1] * q / 100)))) if ranks[-1] else 0


@dataclass(frozen=True)
class LiveResult:
    """Result of a live run.

    masks, skipped: number of masked and of skipped frames.
    frames_per_s, source_frames_per_s: masked, and stated by the source (0 if unknown).
    p50_ms, p99_ms: delay from capture to mask.
    apart_p99_ms: distance of the end of the sound from its frame; None without sound.
    losses: number of reconnections.
    """

    masks: int
    skipped: int
    frames_per_s: float
    source_frames_per_s: float
    p50_ms: int
    p99_ms: int
    apart_p99_ms: int | None
    losses: int

    def lines(self) -> Iterator[str]:
        """Yield the result as lines for the user."""
        of = f" of {self.source_frames_per_s:g}" if self.source_frames_per_s else ""
        delay = f"{self.p50_ms} ms from capture to mask (p99 {self.p99_ms} ms)"
        yield f"{self.frames_per_s:g}{of} frames/s, {delay}"
        if self.skipped:
            share = self.skipped / (self.masks + self.skipped)
            yield f"{self.skipped} frames skipped ({share:.0%}): only the newest is masked"
        if self.apart_p99_ms is None:
            yield "note: no sound: masks are computed with silence"
        elif self.apart_p99_ms > IN_STEP_MS:
            yield f"note: the sound is {self.apart_p99_ms} ms behind its frame (p99)"
        if self.losses:
            times = "once" if self.losses == 1 else f"{self.losses} times"
            yield f"note: the source was lost and reconnected {times}"


class Stats:
    """Statistics of one run; now_text describes the last seconds."""

    def __init__(self) -> None:
        self.masks = self.skipped = 0
        self.delays, self.apart = Delays(), Delays()
        self._begun: float | None = None
        self._last = 0.0
        self._recent: list[tuple[float, float]] = []  # (when, delay) of the last masks

    def add(self, skipped: int, delay_s: float, apart_s: float | None) -> None:
        now = time.monotonic()
        self._begun = now if self._begun is None else self._begun
        self._last = now
        self.masks, self.skipped = self.masks + 1, self.skipped + skipped
        self.delays.add(delay_s)
        if apart_s is not None:
            self.apart.add(abs(apart_s))
        self._recent = [*self._recent[-29:], (now, delay_s)]

    @property
    def frames_per_s(self) -> float:
        span = self._last - (self._begun or 0.0)
        return (self.masks - 1) / span if self.masks > 1 and span else 0.0

    def now_text(self) -> str:
        """Return rate and mean delay of the last 30 masks, and the number of skipped frames."""
        span = self._recent[-1][0] - self._recent[0][0]
        rate = (len(self._recent) - 1) / span if span else 0.0
        delay = np.mean([delay for _, delay in self._recent])
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{rate:.1f} frames/s, {1000 * delay:.0f} ms from capture to mask{skipped}"

    def result(self, **more: Any) -> LiveResult:
        apart = self.apart.percentile_ms(99) if more.pop("has_sound") else None
        return LiveResult(
            masks=self.masks,
            skipped=self.skipped,
            frames_per_s=round(self.frames_per_s, 2),
            p50_ms=self.delays.percentile_ms(50),
            p99_ms=self.delays.percentile_ms(99),
            apart_p99_ms=apart,
            **more,
        )
