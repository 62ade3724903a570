"""Reading of a weight file, ours or another project's, by content; the suffix is ignored."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from save_deploy.checkpoints.names import bare_names
from save_deploy.checkpoints.native import read_shapes
from save_deploy.checkpoints.pth import PthFile, open_pth
from save_deploy.weight_files import is_native, is_safetensors, open_safetensors

_SHOWN = 6


@dataclass(frozen=True)
class WeightFile:
    """Tensors of a file under their bare names, and what surrounds them.

    form: PyTorch or safetensors.
    wrapper: entry that contains the tensors.
    prefix: prefix removed from every name.
    dropped: entries and tensors that do not belong to the model.
    """

    path: Path
    tensors: dict[str, Tensor]
    form: str
    wrapper: str
    prefix: str
    dropped: tuple[str, ...]

    @property
    def around(self) -> str:
        """Description such as `PyTorch, under 'model', names start with module.`"""
        under = [f"under '{self.wrapper}'"] if self.wrapper else []
        start = [f"names start with {self.prefix}"] if self.prefix else []
        return ", ".join([self.form, *under, *start])

    def say(self, also: tuple[str, ...] = ()) -> None:
        """Print to stderr what was unwrapped and left out.

        also: tensors that the layout leaves out.
        """
        dropped = (*self.dropped, *also)
        if self.wrapper or self.prefix or dropped:
            more = f", and {len(dropped) - _SHOWN} more" if len(dropped) > _SHOWN else ""
            left_out = f"; left out: {', '.join(dropped[:_SHOWN])}{more}" if dropped else ""
            print(f"note: {self.path}: {self.around}{left_out}", file=sys.stderr)


def is_ours(path: Path) -> bool:
    """Return True for a checkpoint of save_checkpoint. Raises CheckpointError for a damaged one."""
    if not os.path.isfile(path) or not is_safetensors(path):
        return False
    with open_safetensors(path) as (_, metadata):
        return is_native(metadata)


def open_stored(path: Path, *, shapes_only: bool = False) -> PthFile:
    """Return the tensors under their stored names. Raises CheckpointError.

    shapes_only: return meta tensors; only names, shapes and types are read.
    """
    if not os.path.isfile(path) or not is_safetensors(path):
        return open_pth(path, shapes_only=shapes_only)
    with open_safetensors(path) as (file, _):
        shapes = read_shapes(file)  # raises for an unsupported type
        if shapes_only:
            return PthFile(shapes, "", ())
        return PthFile({key: file.get_tensor(key) for key in file.keys()}, "", ())


def open_weights(path: Path, *, shapes_only: bool = False) -> WeightFile:
    """Return the unwrapped model in a file of any project. Raises CheckpointError."""
    stored = open_stored(path, shapes_only=shapes_only)
    bare = bare_names(stored.tensors)
    return WeightFile(
        path=path,
        tensors={bare.names[k]: v for k, v in stored.tensors.items() if k in bare.names},
        form="safetensors" if is_safetensors(path) else "PyTorch",
        wrapper=stored.wrapper,
        prefix=bare.prefix,
        dropped=(*stored.dropped, *bare.beside),
    )
