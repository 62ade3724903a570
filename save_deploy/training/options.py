"""Settings of a training run, which are options of save-train."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from save_deploy.errors import SaveDeployError
from save_deploy.fields import check_word
from save_deploy.options import check_limits, option, skip_bad_option, sound_option

LOSS_NAMES = ("bce+iou", "bce", "bce+iou+edge")
METRICS = ("avsbench", "sama", "sama_val", "gavs")
DATA, SCHEDULE, MEMORY, RUN = "Data", "Schedule", "Memory", "Run"
FIXED_BY_RECIPE = ("--recipe",)  # a row of the paper sets these options itself
MOST_SOURCES = 2


def parse_mixture(text: str) -> dict[str, float]:
    """Parse "a=0.2,b=0.8" or "a" to weights by source."""
    try:
        parts = [part.partition("=") for part in text.split(",")]
        mixture = {name: float(weight or 1.0) for name, _, weight in parts}
        _check_shares(mixture.values())
    except ValueError:
        raise SaveDeployError(
            "unreadable data mixture", got=text, expected="weights, such as scenes=0.2,stamps=0.8"
        ) from None
    return mixture


def _check_shares(shares: Iterable[float]) -> None:
    """Raise ValueError for shares below 0 or not finite, or with a sum of 0."""
    shares = list(shares)
    if not all(map(math.isfinite, shares)) or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError


def parse_odds(text: str) -> tuple[float, ...]:
    """Parse "0.1,0.6,0.3" to shares of 0, 1, 2 sources."""
    try:
        odds = tuple(float(part) for part in text.split(","))
        _check_shares(odds)
        if len(odds) > MOST_SOURCES + 1:
            raise ValueError
    except ValueError:
        raise SaveDeployError(
            "unreadable shares",
            got=text,
            expected=f"those of 0 to {MOST_SOURCES} sources, such as 0.08,0.78,0.14",
        ) from None
    return odds


def parse_range(text: str, kind: Callable[[str], Any]) -> tuple[Any, Any]:
    """Parse "2-4" to (2, 4)."""
    try:
        low, high = (kind(part) for part in text.split("-"))
        if not 0 < low <= high < math.inf:
            raise ValueError
    except ValueError:
        raise SaveDeployError(
            "unreadable range", got=text, expected="MIN-MAX, such as 2-4"
        ) from None
    return low, high


@dataclass(frozen=True, kw_only=True)
class Savings:
    """Options that reduce the memory of a step.

    amp: bfloat16 MatMuls under autocast, and frozen SAM weights stored in bfloat16.
    checkpoint_blocks: encoder blocks keep only their input and are recomputed in backward.
    moments: fp32, or bf16 with stochastic rounding (half of AdamW's state).
    """

    amp: bool = option(
        "--amp", panel=MEMORY, default=False,
        help="MatMuls in bfloat16; frozen weights stored in bfloat16.",
    )  # fmt: skip
    checkpoint_blocks: bool = option(
        "--checkpointing", panel=MEMORY, default=False,
        help="Recompute encoder blocks in the backward pass.",
    )  # fmt: skip
    moments: str = option(
        "--moments", panel=MEMORY, default="fp32",
        help="AdamW's moments: fp32, or bf16 with stochastic rounding.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_word("precision of the moments", self.moments, ("fp32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run.

    `freeze_sam` trains only the parts of the model's system (A12).
    """

    # source -> weight, e.g. {"scenes": 0.2, "stamps": 0.8}
    data: dict[str, float] = option(
        "--data", parse=parse_mixture, text="scenes", excludes=FIXED_BY_RECIPE,
        help="Sources and weights: scenes=0.2,stamps=0.8, or a dataset folder.",
    )  # fmt: skip
    val_data: str | None = option(  # None: the last weights count as the best
        "--val-data",
        default="scenes",
        excludes=FIXED_BY_RECIPE,
        help="Where validation M_J is measured.",
    )
    n_val_clips: int | None = option(
        "--val-clips",
        panel=DATA,
        default=24,
        low=1,
        excludes=FIXED_BY_RECIPE,
        help="Clips per validation.",
    )
    steps: int = 10_000
    # per step, over all devices and accumulated parts
    batch_size: int = option(
        "--batch",
        default=16,
        low=1,
        excludes=FIXED_BY_RECIPE,
        help="Frames per step, over all devices and parts.",
    )
    by_video: bool = False  # stored data: frames of a video are consecutive
    accumulate: int = option(
        "--accumulate", panel=MEMORY, default=1, low=1, excludes=FIXED_BY_RECIPE,
        help="Parts in which a device processes its share of a batch.",
    )  # fmt: skip
    loss: str = option(
        "--loss", panel=SCHEDULE, default="bce+iou", excludes=FIXED_BY_RECIPE,
        help="bce+iou (the paper's), bce (GAVS), or bce+iou+edge.",
    )  # fmt: skip
    metrics: str = option(
        "--metrics", panel=RUN, default="avsbench", excludes=FIXED_BY_RECIPE,
        help="Protocol of the validation: avsbench, sama, sama_val or gavs.",
    )  # fmt: skip
    lr: float = option(  # A11
        "--lr",
        panel=SCHEDULE,
        default=2e-4,
        low=0,
        high=1,
        excludes=FIXED_BY_RECIPE,
        help="Peak rate; linear warm-up, then cosine.",
    )
    weight_decay: float = option(
        "--weight-decay",
        panel=SCHEDULE,
        default=0.01,
        low=0,
        high=10,
        excludes=FIXED_BY_RECIPE,
        help="Weight decay of AdamW.",
    )
    warmup_steps: int = option(
        "--warmup",
        panel=SCHEDULE,
        default=200,
        low=0,
        excludes=FIXED_BY_RECIPE,
        help="Steps of linear warm-up.",
    )
    final_lr_ratio: float = option(
        "--final-lr-ratio",
        panel=SCHEDULE,
        default=0.01,
        low=0,
        high=1,
        excludes=FIXED_BY_RECIPE,
        help="Last learning rate over the peak.",
    )
    clip_norm: float = 1.0
    ema: float = option(
        "--ema", panel=SCHEDULE, default=0.0, low=0, high=0.99999,
        help="Decay of averaged weights, which are validated and kept; 0: no average.",
    )  # fmt: skip
    score_limit: float = option(
        "--score-limit", panel=SCHEDULE, default=0.0, low=0,
        help="Largest decoder score before its division, for float16; 0: no limit.",
    )  # fmt: skip
    freeze_sam: bool = option(
        "--freeze", panel=RUN, default=False, excludes=FIXED_BY_RECIPE,
        help="Train only what the system trains (always with --sam).",
    )  # fmt: skip
    aux_weight: float = option(
        "--aux", panel=SCHEDULE, default=0.0,
        help="Weight of the auxiliary object and sound class losses (generated data).",
    )  # fmt: skip
    eval_every: int = option(
        "--eval-every",
        panel=RUN,
        default=500,
        low=1,
        excludes=FIXED_BY_RECIPE,
        help="Steps between validations.",
    )
    save_every: int = 250
    seed: int = option(
        "--seed", panel=RUN, default=0, low=0, high=2**32, help="Seed of weights, data and order."
    )
    adapter_only: bool = False  # best.safetensors without the weights of a SAM file
    half: bool = option(
        "--half", panel=RUN, default=False, help="Store best.safetensors in float16."
    )
    n_objects: tuple[int, int] = option(
        "--objects", panel=DATA, default=(2, 4), text="2-4",
        parse=lambda text: parse_range(text, int), help="Objects per generated scene, MIN-MAX.",
    )  # fmt: skip
    scale: tuple[float, float] = option(
        "--scale", panel=DATA, default=(0.28, 0.5), text="0.28-0.5",
        parse=lambda text: parse_range(text, float), help="Object side over frame side, MIN-MAX.",
    )  # fmt: skip
    source_odds: tuple[float, ...] = option(  # see Staging
        "--sources", panel=DATA, default=(0.08, 0.78, 0.14), text="0.08,0.78,0.14",
        parse=parse_odds, help="Share of generated clips with 0, 1, 2 sources.",
    )  # fmt: skip
    out_of_view: float = option(
        "--out-of-view", panel=DATA, default=0.0, low=0, high=1,
        help="Share of generated clips with one more sound, of an object out of view.",
    )  # fmt: skip
    sound_steps: int = option(
        "--sound-steps", panel=SCHEDULE, default=0, low=0,
        help="Audio-only warm-up steps before training (batch 64).",
    )  # fmt: skip
    # extra sound mixtures with every batch preserve what the warm-up learned
    sound_batch: int = option(
        "--sound-batch", panel=SCHEDULE, default=0, low=0,
        help="Extra sound mixtures per batch, weighted by --aux.",
    )  # fmt: skip
    savings: Savings = field(default_factory=Savings)
    device: str = option(
        "--device", panel=RUN, default="auto", help="auto, cpu or cuda; several: torchrun."
    )
    deterministic: bool = option(
        "--deterministic", panel=RUN, default=False, help="Same seed, same weights; slower on GPUs."
    )
    skip_bad: bool = skip_bad_option(DATA)
    sound_from: str = sound_option(DATA)

    def __post_init__(self) -> None:
        check_limits(self)
        check_word("loss", self.loss, LOSS_NAMES)
        check_word("metrics", self.metrics, METRICS)
        if (self.sound_steps or self.sound_batch) and not self.aux_weight:
            raise SaveDeployError(
                "hearing alone needs the sound classifier",
                got="--sound-steps or --sound-batch without --aux",
                expected="a weight above 0, such as --aux 0.25",
            )

    def share(self, world: int) -> int:
        """Return the samples of one accumulated part on one device.

        Raises SaveDeployError when the batch does not divide equally.
        """
        parts = world * self.accumulate
        if self.batch_size % parts:
            raise SaveDeployError(
                "a batch does not divide into equal parts",
                got=f"{self.batch_size} over {world} devices x {self.accumulate} parts",
                expected=f"a multiple of {parts}: gradients are averaged over equal parts",
            )
        return self.batch_size // parts
