"""Memory management for the export of models of several gigabytes."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from save_deploy.config import SaveConfig
from save_deploy.machine import available_bytes

# Above this the eager model and a session are not held together: eager is timed first.
LARGE_BYTES = 2_000_000_000
SCORES = 4  # tensors of the size of the scores that an eager block holds at once
MOST_FRAMES = 8  # in one call: more gain nothing, and progress is shown between calls
TOGETHER = 5  # frames in one call of a large eager model
# With this much memory for each byte of weights they stay between stages: reading them again from
# disk takes longer than a stage that only needs a few of them.
PLENTY = 2
# Linux MADV_PAGEOUT: reclaim pages now; pages of a file are read again on access
_MADV_PAGEOUT = 21


class WeightMemory:
    """Keeps at most one copy of a large model's weights in memory. Does nothing for a small model.

    Weights are mapped from the checkpoint. Those of a large model (see `is_large`) are paged out at
    the start of each stage and read again on use, where memory is short. Modules are freed after
    their last use.
    """

    def __init__(self, model: nn.Module, config: SaveConfig) -> None:
        self.model = model
        self.weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.large = is_large(config, self.weight_bytes)
        # frames of one call: each of them alone would read all weights again
        self.together = 1
        if self.large and TOGETHER * score_bytes(config) <= LARGE_BYTES:
            self.together = TOGETHER

    def between_stages(self, on_stage: Callable[[str, str], None]) -> Callable[[str, str], None]:
        """Return an on_stage(stage, detail) that pages out the weights where memory is short."""
        current = ""

        def announce(stage: str, detail: str) -> None:
            nonlocal current
            if self.large and stage != current and self._short():
                page_out(self.model)
            current = stage
            on_stage(stage, detail)

        return announce

    def _short(self) -> bool:
        return available_bytes() < PLENTY * self.weight_bytes

    def free(self, *modules: nn.Module) -> None:
        """Free modules of a large model after their last use."""
        if self.large:
            free_weights(*modules)
            gc.collect()


def is_large(config: SaveConfig, weight_bytes: int) -> bool:
    """Return True when an eager model and a session do not fit into memory together.

    Compares weights plus the scores of one global block, the largest tensor at 1024 px, with
    LARGE_BYTES.
    """
    return weight_bytes + score_bytes(config) > LARGE_BYTES


def score_bytes(config: SaveConfig) -> int:
    """Return the size in bytes of one score tensor of a global block: float32, one frame."""
    return 4 * config.num_heads * config.grid**4


def frames_at_once(config: SaveConfig) -> int:
    """Return how many frames fit into one call of an eager model whose weights are not large."""
    return max(1, min(MOST_FRAMES, LARGE_BYTES // (SCORES * score_bytes(config))))


def page_out(*modules: nn.Module) -> None:
    """Page out weights that are mapped from a checkpoint; they are read again on access.

    Values do not change. Anonymous memory is paged out only if there is swap. Does nothing on
    systems other than Linux.
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
    """Free the memory of modules that are still referenced.

    The exporter's rewrite rules keep the last graph they saw, and with it every parameter, for the
    life of the process.
    """
    for tensor in _tensors(*modules):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def _tensors(*modules: nn.Module) -> list[Tensor]:
    return [t for m in modules for t in [*m.parameters(), *m.buffers()]]
