"""Training on several devices with torchrun: each process handles a part of every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from save_deploy.errors import BackendError
from save_deploy.machine import allowed_cores


@dataclass(frozen=True)
class Team:
    """This process in its group. Rank 0 writes files and prints."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def cores(self) -> int:
        """CPU cores of this process: its part of the machine's."""
        return max(1, allowed_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wrap(self, step: nn.Module) -> nn.Module:
        """Wrap a module so that backward averages gradients.

        Call the wrapper, not the inner module.
        """
        return step if self.world == 1 else DistributedDataParallel(step)


@contextlib.contextmanager
def team(device: str = "auto") -> Iterator[Team]:
    """Join the process group of torchrun (RANK, WORLD_SIZE, LOCAL_RANK), or run alone.

    A process joins once: inside another `team` the group stays as it is.
    Raises BackendError when a GPU is requested and there is none, or fewer than processes.
    """
    rank, world = int(os.environ.get("RANK", "0")), world_size()
    chosen = _device(device)
    joins = world > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Team(rank, world, chosen)
    finally:
        if joins:
            dist.destroy_process_group()


def leads() -> bool:
    """Return True in the process that prints: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Return the number of processes that torchrun started, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise BackendError("unknown device", got=name, expected="auto, cpu or cuda")
    if name == "cuda" and not available:
        raise BackendError(
            "no GPU for training",
            got="torch finds no CUDA device",
            expected="an NVIDIA GPU with its driver",
            hint="save-train --device cpu   (vit_t), or look at nvidia-smi",
        )
    if name == "cpu" or not available:
        return torch.device("cpu")
    local, n_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= n_gpus:
        raise BackendError(
            "more processes than GPUs",
            got=f"process {local + 1} of this machine, {n_gpus} GPUs",
            expected=f"torchrun --nproc-per-node {n_gpus} at most",
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
