"""Every setting of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from save_deploy.errors import SaveDeployError


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What a step may do to need less memory.

    amp: bfloat16 products under autocast, and frozen SAM weights stored in bfloat16.
    checkpoint_blocks: encoder blocks keep their input and are computed again in backward.
    moments: fp32, or bf16 with stochastic rounding (half of AdamW's state).
    """

    amp: bool = False
    checkpoint_blocks: bool = False
    moments: str = "fp32"

    def __post_init__(self) -> None:
        if self.moments not in ("fp32", "bf16"):
            raise SaveDeployError(
                "unknown precision of the moments", got=self.moments, expected="fp32, bf16"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. `freeze_sam` trains only what the model's system trains (A12)."""

    data: dict[str, float]  # source -> weight, e.g. {"scenes": 0.2, "stamps": 0.8}
    val_data: str | None = "scenes"  # None: the last weights are the best
    n_val_clips: int | None = 24
    steps: int = 10_000
    batch_size: int = 16  # of a step: over all devices and accumulated parts
    by_video: bool = False  # stored data: all frames of a video one after the other
    accumulate: int = 1  # parts in which each device takes its share of a batch
    loss: str = "bce+iou"
    metrics: str = "avsbench"
    lr: float = 2e-4  # A11
    weight_decay: float = 0.01
    warmup_steps: int = 200
    final_lr_ratio: float = 0.01
    clip_norm: float = 1.0
    freeze_sam: bool = False
    aux_weight: float = 0.0  # pixel and sound classes of generated data
    eval_every: int = 500
    save_every: int = 250
    seed: int = 0
    adapter_only: bool = False  # best.safetensors without what a SAM file brings
    half: bool = False  # best.safetensors in float16: half the size
    n_objects: tuple[int, int] = (2, 4)
    scale: tuple[float, float] = (0.28, 0.5)
    source_odds: tuple[float, ...] = (0.08, 0.78, 0.14)  # see Staging
    sound_steps: int = 0  # of the sound warm-up before the first step
    sound_batch: int = 0  # mixtures heard beside every batch, so that hearing is not forgotten
    savings: Savings = field(default_factory=Savings)
    device: str = "auto"
    deterministic: bool = False
    skip_bad: bool = False
    sound_from: str = "auto"  # of released data: wav, log_mel or video

    def share(self, world: int) -> int:
        """Samples of one accumulated part on one device. Raises when a batch does not divide."""
        parts = world * self.accumulate
        if self.batch_size % parts:
            raise SaveDeployError(
                "a batch does not divide into equal parts",
                got=f"{self.batch_size} over {world} devices x {self.accumulate} parts",
                expected=f"a multiple of {parts}: gradients are averaged over equal parts",
            )
        return self.batch_size // parts
