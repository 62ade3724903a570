"""What is compared, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.options import (
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
    """None: not asked. max_drop in M_J points and min_agreement (IoU) hold for every row; min_speedup
    (times the reference) for the fastest backend of each bundle."""

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


@dataclass(frozen=True)
class CompareOptions:
    """Bundles x backends x data. checkpoints, sams: files the references may be made of, found by
    their hash. eager False: the first bundle on its first backend is the reference. clips: of each
    dataset, None = all. frames: worst ones kept of each dataset. memory: one process more per row.
    self_test: of GPU backends that are new here. trust: engines that were not built here run as well.
    threshold: of masks and of M_J, a probability."""

    bundles: tuple[Path, ...] = option(metavar="BUNDLE...", help="Folders written by save-export.")
    backends: tuple[str, ...] = option(
        "--backend", default=("auto",), default_text="auto",
        help="Of every bundle (repeatable): onnxruntime, openvino, onnxruntime-cuda, "
        "onnxruntime-tensorrt, tensorrt, tensorrt-rtx: exit 3 where one cannot run a bundle. all: "
        "those that can. auto: the best of them.",
    )  # fmt: skip
    data: tuple[str, ...] = option(
        "--data", default=("scenes",), default_text="scenes",
        help="scenes, scenes:ms3, stamps, stamps:ms3, or a released dataset: DIR or DIR:SUBSET "
        "(repeatable).",
    )  # fmt: skip
    split: str = option("--split", panel=DATA, default="test", help="train, val or test.")
    clips: int | None = clips_option()
    checkpoints: tuple[Path, ...] = option(
        "--checkpoint", default=(),
        help="What a bundle was made of, found by its hash (repeatable). Default: the built-in one.",
    )  # fmt: skip
    sams: tuple[Path, ...] = option(
        "--sam", panel=DATA, default=(),
        help="SAM's official .pth, for a checkpoint that holds only the trained parts (repeatable).",
    )  # fmt: skip
    eager: bool = option(
        "--eager/--no-eager", panel=MEASUREMENT, default=True,
        help="--no-eager needs neither checkpoint nor torch: the first bundle on its first backend is "
        "then the reference.",
    )  # fmt: skip
    eager_device: str | None = option(
        "--eager-device", panel=MEASUREMENT, default=None,
        default_text="of the fastest backend compared",
        help="Where the eager model runs: cpu or cuda. A GPU backend counts as faster than any other.",
    )  # fmt: skip
    eager_tf32: bool = option(
        "--eager-tf32/--no-eager-tf32", panel=MEASUREMENT, default=False,
        help="On CUDA: a further row of the eager model with TF32. Bundles take it from --cuda.",
    )  # fmt: skip
    cuda: str = option(
        "--cuda", panel=MEASUREMENT, default="",
        help="Of onnxruntime-cuda: graph=on|off, tf32=on|off, nhwc=on|off, memory=MIB, "
        "arena=grow|power2, comma-separated. Default: graph=on,tf32=off,nhwc=off,arena=grow.",
    )  # fmt: skip
    eager_rows: bool = option(
        "--eager-rows/--no-eager-rows", panel=MEASUREMENT, default=True,
        help="On CUDA: further rows of torch.compile and of FP16 and BF16 by autocast.",
    )  # fmt: skip
    rounds: int = option(
        "--rounds", panel=MEASUREMENT, default=20, low=3,
        help="Timing rounds; up to three times as many while not steady.",
    )  # fmt: skip
    frames: int = option(
        "--frames", panel=MEASUREMENT, default=8, low=0,
        help="Worst frames of each dataset kept for the report.",
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
