"""Random weights of any configuration, to measure speed and memory without a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from save_deploy.checkpoints.load import model_from_state
from save_deploy.checkpoints.native import save_checkpoint
from save_deploy.config import SaveConfig
from save_deploy.model.save import SaveModel


def write_random_checkpoint(path: Path, config: SaveConfig, seed: int = 0) -> Path:
    """Write a full checkpoint with random weights and return its path.

    Norms, biases and position tables are not trivial, so that wrong rewrites of them are detected.
    The masks have no meaning.
    """
    with torch.device("meta"):
        wanted = SaveModel(config).state_dict()
    generator = torch.Generator().manual_seed(seed)
    state = {name: _random(name, value, generator) for name, value in wanted.items()}
    model = model_from_state(config, state, source="random weights")
    save_checkpoint(path, model, notes={"weights": "random", "seed": seed})
    return path


def _random(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.empty(like.shape).normal_(generator=generator)
    if "norm" in name and name.endswith("weight"):
        return noise.mul_(0.1).add_(1.0)
    if like.ndim < 2 or "rel_pos" in name or "pos_embed" in name:
        return noise.mul_(0.1)
    fan_in = like[0].numel()
    return noise.mul_(fan_in**-0.5)
