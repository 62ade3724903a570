"""Run by torchrun in test_distributed.py: gradients of one batch, each process on its share."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from save_deploy.training.batches import Batch
from save_deploy.training.distributed import Team, team
from save_deploy.training.parameters import trainable_parameters
from save_deploy.training.start import fresh_model
from save_deploy.training.step import AuxHeads, TrainStep
from save_deploy.training.systems_table import scene_batch
from tests.conftest import make_tiny

BATCH = 4


def gradients(here: Team, how: str) -> dict[str, torch.Tensor]:
    """how: wrapped (as the loop calls it), bare (the module inside, as SAMA-AVS calls it)."""
    torch.manual_seed(0)
    model = fresh_model(make_tiny().config).train()
    # a parameter without gradient would block reduction
    trainable_parameters(model, freeze_sam=False)
    step = TrainStep(model, AuxHeads(model.config.audio_fc), aux_weight=0.2)
    batch: Batch = scene_batch(model.config.res, BATCH)
    wrapped = here.wrap(step)
    loss, _ = (wrapped if how == "wrapped" else step)(batch.split(BATCH // here.world)[here.rank])
    loss.backward()
    return {n: p.grad for n, p in step.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with team("cpu") as here:
        with team("cpu") as stage:  # of a recipe: the group goes on after it
            assert stage == here
        for how in ("wrapped", "bare"):
            found = gradients(here, how)
            save_file(found, Path(sys.argv[1]) / f"{how}_{here.rank}.safetensors")
