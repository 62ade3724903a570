"""One row of a comparison, as a value and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from save_deploy.metrics.latency import LatencyResult
from save_deploy.metrics.margin import Margin
from save_deploy.metrics.parity import ParityResult
from save_deploy.metrics.segmentation import Score

WITHHELD = "withheld"  # instead of a ratio


@dataclass(frozen=True)
class TimeSplit:
    """Time of the parts of one call, in ms."""

    preprocess: float
    audio: float
    model: float
    postprocess: float


@dataclass(frozen=True)
class Row:
    """One entry on one dataset.

    name: unique per dataset.
    bundle, dataset: names as the user gave them.
    parity, speedup: compared with the reference (eager) of the same run; the reference has no
        parity. No row of a timing that other processes disturbed has a speedup.
    device: where it ran, with TF32.
    device_ms: median between CUDA events of the calls whose latency is from host to host.
    None stands for a value that was not measured.
    """

    backend: str
    precision: str
    size_mb: float
    latency: LatencyResult
    speedup: float | None
    score: Score
    parity: ParityResult | None
    name: str = ""
    bundle: str = ""
    dataset: str = ""
    margin: Margin | None = None
    peak_memory_mib: float | None = None
    time_split: TimeSplit | None = None
    device: str = "cpu"
    device_ms: float | None = None

    @property
    def reference(self) -> bool:
        return self.parity is None

    @property
    def speedup_text(self) -> str:
        return WITHHELD if self.speedup is None else f"{self.speedup:.2f}"


def row_values(row: Row) -> dict[str, Any]:
    """Return a row as JSON values with raw samples, without values that were not measured.

    speedup is null where other processes disturbed the timing; latency.withheld says why.
    """
    always = ("parity", "speedup")
    values = {k: v for k, v in asdict(row).items() if k in always or v not in (None, "")}
    values["latency"] = {
        "p50_ms": row.latency.p50_ms,
        "p90_ms": row.latency.percentile(90),
        "p99_ms": row.latency.percentile(99),
        "samples_ms": [round(s, 3) for s in row.latency.samples_ms],
        **others_values(row.latency),
    }
    return values


def others_values(latency: LatencyResult) -> dict[str, Any]:
    """Return JSON values of what other processes did to a timing, {} when that was not watched."""
    if latency.others is None:
        return {}
    return {"others": asdict(latency.others), "withheld": latency.withheld or None}
