"""What to export and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.calibration.histogram import METHODS
from save_deploy.config import check_resolution
from save_deploy.errors import SaveDeployError
from save_deploy.export.merge.forms import Forms, forms_for
from save_deploy.metrics.parity import ParityBudget
from save_deploy.precision import Precision

SEARCH_COSTS = {"time": "ms", "work": "GMAC"}
STAGES = ("load", "golden", "merge", "precision", "trace", "write", "prove")
QUANTIZED_STAGES = (
    "load", "golden", "merge", "calibrate", "precision", "trace", "search", "write", "prove",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Where ranges come from. data None: the export's own data; table: a finished table instead;
    skip_bad: clips that cannot be read are passed over."""

    data: str | None = None
    split: str = "train"
    pairs: int = 64
    method: str | None = None
    table: Path | None = None
    smooth: bool = True
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise SaveDeployError(
                "unknown calibration method", got=self.method, expected=", ".join(METHODS)
            )


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Which products stay in float. max_drop: M_J points that may be lost on `clips` clips of `data`'s
    val split (None: all products are quantized); cost: what is minimised, `time` as measured here or
    `work`, multiplications with 8-bit ones counted half (None: what suits the target); reuse: a bundle
    whose choice is taken."""

    max_drop: float | None = None
    data: str | None = None
    clips: int = 40
    cost: str | None = None
    reuse: Path | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise SaveDeployError(
                "--max-drop out of range", got=f"{self.max_drop:g}", expected="0 to 100 M_J points"
            )
        if self.cost is not None and self.cost not in SEARCH_COSTS:
            raise SaveDeployError(
                "unknown --search-cost", got=self.cost, expected=" or ".join(SEARCH_COSTS)
            )
        if self.max_drop is not None and self.reuse is not None:
            raise SaveDeployError(
                "two choices of precision",
                got="--max-drop and --precision-from",
                expected="one of them: search, or what another bundle's search found",
            )


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export and how. checkpoint None: the built-in one; data: see `data/open.py`."""

    checkpoint: Path | None = None
    sam: Path | None = None
    res: int = 256
    precision: Precision = field(default_factory=Precision)
    batch: int = 1
    target: str = "portable"
    without: tuple[str, ...] = ()
    data: str = "scenes"
    n_golden: int = 8
    out: Path | None = None
    force: bool = False
    rounds: int = 20
    threads: int | None = None
    max_abs_err: float | None = None
    min_agreement: float | None = None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        if not isinstance(self.precision, Precision):  # its text, as in "int8_fp16"
            object.__setattr__(self, "precision", Precision.parse(self.precision))
        check_resolution(self.res)
        _ = self.forms  # refuses unknown targets and rewrites
        if self.calibration.table is not None and self.search.reuse is not None:
            raise SaveDeployError(
                "two sources of ranges",
                got="--calibration-table and --precision-from",
                expected="one of them: a bundle brings its own ranges",
            )

    @property
    def measures_ranges(self) -> bool:
        """False when ranges are read from a table or a bundle."""
        return self.calibration.table is None and self.search.reuse is None

    @property
    def search_cost(self) -> str:
        """What a search minimises: the time of CPU kernels says nothing of an engine's."""
        return self.search.cost or ("work" if self.target == "tensorrt" else "time")

    @property
    def stages(self) -> tuple[str, ...]:
        return QUANTIZED_STAGES if self.precision.quantized else STAGES

    @property
    def folder(self) -> Path:
        stem = (self.checkpoint or Path("save_vit_t")).stem
        clip = "" if self.batch == 1 else f"_x{self.batch}"
        return self.out or Path(f"{stem}_{self.res}_{self.precision}{clip}")

    @property
    def forms(self) -> Forms:
        forms = forms_for(self.target, res=self.res)
        if self.precision.quantized:
            forms = forms.quantizable()
        return forms.without(*self.without)

    @property
    def budget(self) -> ParityBudget:
        default = ParityBudget.for_precision(self.precision)
        return ParityBudget(
            max_abs_err=default.max_abs_err if self.max_abs_err is None else self.max_abs_err,
            min_agreement=default.min_agreement
            if self.min_agreement is None
            else self.min_agreement,
        )
