"""Memory of an export of gigabyte models. The one place that gives weights back."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from save_deploy.config import SaveConfig

# Above this the eager model and a session are not held in memory together: eager is timed before.
LARGE_BYTES = 2_000_000_000
# Linux: reclaim now; pages of a file are read again when touched, nothing is lost
_MADV_PAGEOUT = 21


class WeightMemory:
    """Keeps one copy of a large model's weights in memory. Does nothing for a small model.

    Weights are mapped from the checkpoint. A large model (see `is_large`) leaves memory at the start of
    each stage and is read again where it is used; modules are freed after their last use.
    """

    def __init__(self, model: nn.Module, config: SaveConfig) -> None:
        self.model = model
        self.weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.large = is_large(config, self.weight_bytes)

    def between_stages(self, on_stage: Callable[[str, str], None]) -> Callable[[str, str], None]:
        """on_stage(stage, detail) that also takes the weights out of memory when the stage changes."""
        current = ""

        def announce(stage: str, detail: str) -> None:
            nonlocal current
            if self.large and stage != current:
                page_out(self.model)
            current = stage
            on_stage(stage, detail)

        return announce

    def free(self, *modules: nn.Module) -> None:
        """Give back modules of a large model that are not used any more."""
        if self.large:
            free_weights(*modules)
            gc.collect()


def is_large(config: SaveConfig, weight_bytes: int) -> bool:
    """True when weights and the scores of one global block, the largest tensor at 1024 px, are too much
    to hold an eager model and a session at once."""
    return weight_bytes + score_bytes(config) > LARGE_BYTES


def score_bytes(config: SaveConfig) -> int:
    """One score tensor of a global block, float32, one frame."""
    return 4 * config.num_heads * config.grid**4


def page_out(*modules: nn.Module) -> None:
    """Take weights that are mapped from a checkpoint out of memory until they are used again.

    Their content is not changed: ordinary memory is left alone unless there is swap. Does nothing
    on systems other than Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    for tensor in _tensors(*modules):
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)


def free_weights(*modules: nn.Module) -> None:
    """Give the memory of modules back although something still refers to them.

    The exporter's rewrite rules keep a reference to the last graph they saw, and through it to every
    parameter, for the life of the process.
    """
    for tensor in _tensors(*modules):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def _tensors(*modules: nn.Module) -> list[Tensor]:
    return [t for m in modules for t in [*m.parameters(), *m.buffers()]]
