"""Memory of gigabyte models: mapped pages go back to the file cache, finished modules to the system."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor, nn

# Linux: reclaim now; pages of a file are read again when touched, nothing is lost
_MADV_PAGEOUT = 21


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

    The exporter's rewrite rules remember the last graph they saw, and through it every parameter,
    for the life of the process.
    """
    for tensor in _tensors(*modules):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def _tensors(*modules: nn.Module) -> list[Tensor]:
    return [t for m in modules for t in [*m.parameters(), *m.buffers()]]
