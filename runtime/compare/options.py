"""Options and budget of a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.errors import SaveDeployError
from save_deploy.options import (
    check_limits,
    clips_option,
    option,
    self_test_option,
    skip_bad_option,
    sound_option,
    threads_option,
    threshold_option,
    trust_option,
)

ALL = "all"  # every backend that runs here
DATA, MEASUREMENT = "Data", "Measurement"


@dataclass(frozen=True)
class Budget:
    """Limits of a comparison; None for no limit.

    max_drop: largest loss of M_J of any row, in points.
    min_agreement: smallest mask agreement (IoU) of any row.
    min_speedup: smallest speed-up over the reference of each bundle's fastest backend.
    """

    max_drop: float | None = option(
        "--max-drop", default=None, help="Exit 2 if M_J of a row falls by more points than this."
    )
    min_agreement: float | None = option(
        "--min-agreement", default=None,
        help="Exit 2 if mask agreement (IoU) of a row is below this.",
    )  # fmt: skip
    min_speedup: float | None = option(
        "--min-speedup", default=None,
        help="Exit 2 if the fastest backend of a bundle is below this speed-up over eager.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not math.isfinite(limit):
                raise SaveDeployError(
                    f"wrong --{name.replace('_', '-')}", got=str(limit), expected="a finite number"
                )


@dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison: bundles x backends x data.

    checkpoints, sams: weight files of the references; matched to bundles by their hash.
    eager: False makes the first bundle on its first backend the reference.
    clips: number of clips per dataset; None for all.
    frames: number of worst frames kept per dataset.
    memory: measure each row's peak memory in a process of its own.
    self_test: run the golden samples on GPU backends that are new to this machine.
    trust: also run engines that were not built on this machine.
    threshold: probability for masks and M_J.
    """

    bundles: tuple[Path, ...] = option(metavar="BUNDLE...", help="Folders written by save-export.")
    backends: tuple[str, ...] = option(
        "--backend", default=("auto",), default_text="auto",
        help="Backend for every bundle (repeatable), as save-run takes it (exit 3 if it cannot run "
        "a bundle); all: every backend that can; auto: the fastest.",
    )  # fmt: skip
    data: tuple[str, ...] = option(
        "--data", default=("scenes",), default_text="scenes",
        help="scenes, scenes:ms3, stamps, stamps:ms3, or a released dataset: DIR or DIR:SUBSET "
        "(repeatable).",
    )  # fmt: skip
    split: str = option("--split", panel=DATA, default="test", help="train, val or test.")
    clips: int | None = clips_option()
    checkpoints: tuple[Path, ...] = option(
        "--checkpoint", panel=DATA, default=(),
        help="Source checkpoint of a bundle, matched by its hash (repeatable). Default: the built-in.",
    )  # fmt: skip
    sams: tuple[Path, ...] = option(
        "--sam", panel=DATA, default=(),
        help="SAM's official .pth, for a checkpoint with only the trained parts (repeatable).",
    )  # fmt: skip
    eager: bool = option(
        "--eager/--no-eager", panel=MEASUREMENT, default=True,
        help="With --no-eager, the first bundle on its first backend is the reference; neither a "
        "checkpoint nor torch is needed.",
    )  # fmt: skip
    eager_device: str | None = option(
        "--eager-device", panel=MEASUREMENT, default=None,
        default_text="device of the fastest backend compared",
        help="Device of the eager model: cpu or cuda. GPU backends count as faster than CPU backends.",
    )  # fmt: skip
    eager_tf32: bool = option(
        "--eager-tf32/--no-eager-tf32", panel=MEASUREMENT, default=False,
        help="On CUDA, add a row of the eager model with TF32. For bundles use --cuda tf32=on.",
    )  # fmt: skip
    cuda: str = option(
        "--cuda", panel=MEASUREMENT, default="",
        help="Settings of onnxruntime-cuda, comma-separated: graph=on|off, tf32=on|off, nhwc=on|off, "
        "memory=MIB, arena=grow|power2. Default: graph=on,tf32=off,nhwc=off,arena=grow.",
    )  # fmt: skip
    eager_rows: bool = option(
        "--eager-rows/--no-eager-rows", panel=MEASUREMENT, default=True,
        help="On CUDA, add eager rows with torch.compile and with FP16 and BF16 autocast.",
    )  # fmt: skip
    rounds: int = option(
        "--rounds", panel=MEASUREMENT, default=20, low=3,
        help="Timing rounds; up to three times as many if the timing is not steady.",
    )  # fmt: skip
    frames: int = option(
        "--frames", panel=MEASUREMENT, default=8, low=0,
        help="Number of worst frames per dataset in the report.",
    )  # fmt: skip
    memory: bool | None = option(
        "--memory/--no-memory", panel=MEASUREMENT, default=None, default_text="with --report",
        help="Measure peak memory of each row in a separate process.",
    )  # fmt: skip
    threshold: float = threshold_option(MEASUREMENT)
    threads: int | None = threads_option(MEASUREMENT)
    self_test: bool = self_test_option(MEASUREMENT)
    trust: bool = trust_option(MEASUREMENT)
    sound_from: str = sound_option(DATA)
    skip_bad: bool = skip_bad_option(DATA)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_limits(self)
