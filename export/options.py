"""Options of an export."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.calibration.methods import METHODS
from save_deploy.config import check_resolution
from save_deploy.errors import SaveDeployError
from save_deploy.export.merge.forms import Forms, forms_for
from save_deploy.fields import check_word
from save_deploy.metrics.budget import ParityBudget
from save_deploy.options import check_limits, option, sam_option, skip_bad_option, threads_option
from save_deploy.precision import Precision

SEARCH_COSTS = {"time": "ms", "work": "GMAC"}
STAGES = ("load", "golden", "merge", "precision", "trace", "write", "prove")
QUANTIZED_STAGES = (
    "load", "golden", "merge", "calibrate", "precision", "trace", "search", "write", "prove",
)  # fmt: skip


QUANTIZATION = "Quantization"
SEARCH = "Precision search"
COMPARISON = "Comparison with eager"
GRAPH = "Graph"
_QUANTIZED = ("--int8", "--fp8")
_READ = ("--calibration-table", "--precision-from")
MAX_FRAMES = 64  # frames per call, at most
MAX_BATCHES = 8  # graphs


def parse_batches(text: str) -> tuple[int, ...]:
    """Parse "1,8,32". Raises SaveDeployError for other text."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    check_batches(found, text)
    return found


def check_batches(batches: tuple[int, ...], text: str = "") -> None:
    """Raise SaveDeployError unless these are different numbers from 1 to MAX_FRAMES, not too many."""
    fits = all(type(batch) is int and 1 <= batch <= MAX_FRAMES for batch in batches)
    if not fits or not 0 < len(batches) <= MAX_BATCHES or len(set(batches)) < len(batches):
        raise SaveDeployError(
            "wrong --batch",
            got=(text or ",".join(map(str, batches)))[:80],
            expected=f"frames per call from 1 to {MAX_FRAMES}, such as 5, or several as 1,8,32",
        )


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Where the ranges come from.

    data None: the data of the export.
    table: a finished table to use instead.
    method None: minmax, or the method of the table.
    """

    data: str | None = option(
        "--calib-data", panel=QUANTIZATION, needs=_QUANTIZED, excludes=_READ, default=None,
        help="Calibration data: scenes, stamps, DIR or DIR:SUBSET as released, or a folder of "
        "videos. Default: --data.",
    )  # fmt: skip
    split: str = option(
        "--calib-split", panel=QUANTIZATION, needs=_QUANTIZED, excludes=_READ, default="train",
        help="train or val, never test.",
    )  # fmt: skip
    pairs: int = option(
        "--calib-pairs", panel=QUANTIZATION, needs=_QUANTIZED, excludes=_READ, default=64,
        help="Number of pairs, each a frame and one second of audio.",
    )  # fmt: skip
    method: str | None = option(
        "--calib-method", panel=QUANTIZATION, needs=_QUANTIZED, default=None,
        help="minmax, percentile, entropy or mse. Default: minmax, or the table's.",
    )  # fmt: skip
    table: Path | None = option(
        "--calibration-table", panel=QUANTIZATION, needs=_QUANTIZED, default=None,
        help="Read ranges from a table written by save-calibrate.",
    )  # fmt: skip
    smooth: bool = option(
        "--smooth/--no-smooth", panel=QUANTIZATION, needs=_QUANTIZED, excludes=_READ, default=True,
        help="Scale LayerNorm outputs so that no single channel sets the range.",
    )  # fmt: skip
    skip_bad: bool = skip_bad_option(QUANTIZATION, needs=_QUANTIZED, excludes=_READ)

    def __post_init__(self) -> None:
        check_limits(self)
        if self.method is not None:
            check_word("calibration method", self.method, METHODS)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Which MatMuls stay in float.

    max_drop None: all MatMuls are quantized.
    cost None: the default of the target.
    reuse: a bundle whose ranges and precision choice are used.
    """

    max_drop: float | None = option(
        "--max-drop", panel=SEARCH, needs=_QUANTIZED, default=None,
        help="M_J points that INT8 or FP8 may lose. MatMuls that cost more stay in float.",
    )  # fmt: skip
    data: str | None = option(
        "--search-data", panel=SEARCH, needs=("--max-drop",), default=None,
        help="Dataset whose val split the search uses. Default: the calibration data.",
    )  # fmt: skip
    clips: int = option(
        "--search-clips", panel=SEARCH, needs=("--max-drop",), default=40, low=4,
        help="Validation clips the search uses.",
    )  # fmt: skip
    cost: str | None = option(
        "--search-cost", panel=SEARCH, needs=("--max-drop",), default=None,
        help="What the search minimizes: time, measured here, or work, multiplications with INT8 ones "
        "counted half. Default: time; work for FP8 and for --target tensorrt.",
    )  # fmt: skip
    reuse: Path | None = option(
        "--precision-from", panel=QUANTIZATION, needs=_QUANTIZED, default=None,
        help="Reuse the ranges and precision choice of this bundle.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_limits(self)
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise SaveDeployError(
                "--max-drop out of range", got=f"{self.max_drop:g}", expected="0 to 100 M_J points"
            )
        if self.cost is not None:
            check_word("--search-cost", self.cost, SEARCH_COSTS)
        if self.max_drop is not None and self.reuse is not None:
            raise SaveDeployError(
                "two choices of precision",
                got="--max-drop and --precision-from",
                expected="one of them: a search, or the result of another bundle's search",
            )


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    checkpoint None: the built-in checkpoint.
    data: dataset name, see `data/open.py`.
    batch: frames per call of model.onnx.
    more_batches: frames per call of further graphs, on the same weights.
    """

    checkpoint: Path | None = option(
        default=None,
        help="SAVE checkpoint (.safetensors, or another project's .pth). Default: the built-in vit_t.",
    )
    res: int = option("--res", default=256, help="Input side in px: 224, 256 or 1024.")
    data: str = option(
        "--data", default="scenes",
        help="Where golden samples come from: scenes, stamps or an AVSBench folder.",
    )  # fmt: skip
    out: Path | None = option(
        "--out", "-o", default=None, help="Bundle folder. Default: CHECKPOINT_RES_PRECISION."
    )
    force: bool = option("--force", default=False, help="Replace an existing bundle.")
    precision: Precision = field(default_factory=Precision)
    target: str = "portable"
    weight_bits: int | None = option(
        "--weight-bits", panel=QUANTIZATION, needs=("--int8",), default=None, low=7, high=8,
        help="7 or 8. With 7, CPUs without VNNI run their fast INT8 kernels without saturation. "
        "Default: 7, or 8 for --target tensorrt.",
    )  # fmt: skip
    sam: Path | None = sam_option(GRAPH)
    batch: int = 1
    more_batches: tuple[int, ...] = ()
    without: tuple[str, ...] = option(
        "--no-merge", panel=GRAPH, default=(), metavar="NAME",
        help="Leave out a rewrite (repeatable); `save-deploy merge` lists their names.",
    )  # fmt: skip
    n_golden: int = option(
        "--golden", panel=COMPARISON, default=8, low=1,
        help="Golden samples in the bundle, also used for the comparison table.",
    )  # fmt: skip
    allow_one_sided: bool = option(
        "--allow-one-sided-golden", panel=COMPARISON, default=False,
        help="Accept FP16, INT8 or FP8 though the golden masks are empty or full, so that agreement on "
        "them proves nothing.",
    )  # fmt: skip
    rounds: int = option("--rounds", panel=COMPARISON, default=20, low=3, help="Timing rounds.")
    threads: int | None = threads_option(COMPARISON)
    max_abs_err: float | None = option(
        "--max-logit-error", panel=COMPARISON, default=None,
        help="Parity budget. Default: 1e-3 for fp32, none for the others.",
    )  # fmt: skip
    min_agreement: float | None = option(
        "--min-agreement", panel=COMPARISON, default=None,
        help="Parity budget, IoU of masks. Default: 0.9999 for fp32, 0.995 for fp16, 0.97 for INT8 and "
        "FP8.",
    )  # fmt: skip
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        check_limits(self)
        if not isinstance(self.precision, Precision):  # text such as "int8_fp16"
            object.__setattr__(self, "precision", Precision.parse(self.precision))
        if self.precision.floats == "bf16":
            raise SaveDeployError(
                "no export in this precision",
                got=str(self.precision),
                expected="fp32 or fp16 floats",
            )
        check_resolution(self.res)
        check_batches(self.batches)
        limits = {"--max-logit-error": self.max_abs_err, "--min-agreement": self.min_agreement}
        for name, limit in limits.items():
            if limit is not None and not 0 <= limit < math.inf:
                raise SaveDeployError(
                    f"wrong {name}", got=f"{limit:g}", expected="a finite number from 0 on"
                )
        _ = self.forms  # raises for unknown targets and rewrites
        if self.calibration.table is not None and self.search.reuse is not None:
            raise SaveDeployError(
                "two sources of ranges",
                got="--calibration-table and --precision-from",
                expected="one of them: a bundle has its own ranges",
            )

    @property
    def batches(self) -> tuple[int, ...]:
        """Frames per call of every graph, model.onnx first."""
        return (self.batch, *self.more_batches)

    @property
    def measures_ranges(self) -> bool:
        """False when ranges are read from a table or a bundle."""
        return self.calibration.table is None and self.search.reuse is None

    @property
    def int8_weight_bits(self) -> int:
        """Bits of INT8 weights; 8 for every other format."""
        if self.precision.quantized != "int8":
            return 8
        return self.weight_bits or (8 if self.target == "tensorrt" else 7)

    @property
    def search_cost(self) -> str:
        """What the search minimizes.

        Measured CPU time does not predict the time of a TensorRT engine, and no CPU has FP8 kernels.
        """
        elsewhere = self.target == "tensorrt" or self.precision.quantized == "fp8"
        return self.search.cost or ("work" if elsewhere else "time")

    @property
    def stages(self) -> tuple[str, ...]:
        return QUANTIZED_STAGES if self.precision.quantized else STAGES

    @property
    def folder(self) -> Path:
        stem = (self.checkpoint or Path("save_vit_t")).stem
        clip = "" if self.batches == (1,) else f"_x{'_'.join(map(str, self.batches))}"
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
