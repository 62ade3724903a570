"""Run by torchrun in test_distributed.py: gradients of one batch, each process on its share."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from save_deploy.training.batches import Batch
from save_deploy.training.distributed import team
from save_deploy.training.parameters import trainable_parameters
from save_deploy.training.start import fresh_model
from save_deploy.training.step import AuxHeads, TrainStep
from save_deploy.training.systems_table import scene_batch
from tests.conftest import make_tiny

BATCH = 4


def gradients(rank: int, world: int, how: str) -> dict[str, torch.Tensor]:
    """how: wrapped (as the loop calls it), bare (the module inside, as SAMA-AVS calls it)."""
    torch.manual_seed(0)
    model = fresh_model(make_tiny().config).train()
    trainable_parameters(
        model, freeze_sam=False
    )  # a parameter without gradient would block reduction
    step = TrainStep(model, AuxHeads(model.config.audio_fc), aux_weight=0.2)
    batch: Batch = scene_batch(model.config.res, BATCH)
    with team("cpu") as here:
        wrapped = here.wrap(step)
        called = wrapped if how == "wrapped" else step
        loss, _ = called(batch.split(BATCH // world)[rank])
        loss.backward()
    return {n: p.grad for n, p in step.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    import os

    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = gradients(rank, world, sys.argv[2])
    save_file(found, Path(sys.argv[1]) / f"{sys.argv[2]}_{rank}.safetensors")
