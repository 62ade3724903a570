"""The learning rate of every step."""

from __future__ import annotations

import math

from save_deploy.training.options import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine to final_lr_ratio."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.final_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
