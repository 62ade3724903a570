"""One line of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from save_deploy.metrics.latency import LatencyResult
from save_deploy.metrics.margin import Margin
from save_deploy.metrics.parity import ParityResult
from save_deploy.metrics.segmentation import Score
from save_deploy.runtime.html.data import TimeSplit


@dataclass(frozen=True)
class Row:
    """Parity and speed-up are against the reference (eager) in the same run; it has no parity.

    name is unique per dataset; bundle, dataset: as the user named them; what was not measured is
    None.
    """

    backend: str
    precision: str
    size_mb: float
    latency: LatencyResult
    speedup: float
    score: Score
    parity: ParityResult | None
    name: str = ""
    bundle: str = ""
    dataset: str = ""
    margin: Margin | None = None
    peak_memory_mib: float | None = None
    time_split: TimeSplit | None = None

    @property
    def reference(self) -> bool:
        return self.parity is None
