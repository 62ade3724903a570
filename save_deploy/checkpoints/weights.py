"""One weight file, ours or another project's, by its content: the suffix says nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from save_deploy.checkpoints.names import bare_names
from save_deploy.checkpoints.native import is_native, open_safetensors, read_shapes
from save_deploy.checkpoints.pth import PthFile, is_safetensors, open_pth

_SHOWN = 6


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file under their bare names, and what surrounded them.

    form: PyTorch or safetensors; wrapper: entry that held them; prefix: removed from every name;
    dropped: entries and tensors that are none of the model's.
    """

    path: Path
    tensors: dict[str, Tensor]
    form: str
    wrapper: str
    prefix: str
    dropped: tuple[str, ...]

    @property
    def around(self) -> str:
        """`PyTorch, under 'model', names start with module.`"""
        under = [f"under '{self.wrapper}'"] if self.wrapper else []
        start = [f"names start with {self.prefix}"] if self.prefix else []
        return ", ".join([self.form, *under, *start])

    def say(self, also: tuple[str, ...] = ()) -> None:
        """Tell on stderr what was unwrapped and left out; also: tensors that the layout leaves out."""
        dropped = (*self.dropped, *also)
        if self.wrapper or self.prefix or dropped:
            more = f", and {len(dropped) - _SHOWN} more" if len(dropped) > _SHOWN else ""
            left_out = f"; left out: {', '.join(dropped[:_SHOWN])}{more}" if dropped else ""
            print(f"note: {self.path}: {self.around}{left_out}", file=sys.stderr)


def is_ours(path: Path) -> bool:
    """True for a checkpoint that save_checkpoint wrote. Raises CheckpointError for a damaged one."""
    if not path.is_file() or not is_safetensors(path):
        return False
    with open_safetensors(path) as (_, metadata):
        return is_native(metadata)


def open_stored(path: Path, *, shapes_only: bool = False) -> PthFile:
    """The tensors under the names that the file has. Raises CheckpointError.

    shapes_only: meta tensors; nothing is read but names, shapes and types.
    """
    if not path.is_file() or not is_safetensors(path):
        return open_pth(path, shapes_only=shapes_only)
    with open_safetensors(path) as (file, _):
        if shapes_only:
            return PthFile(read_shapes(file), "", ())
        return PthFile({key: file.get_tensor(key) for key in file.keys()}, "", ())


def open_weights(path: Path, *, shapes_only: bool = False) -> WeightFile:
    """The model in a file of any project, unwrapped. Raises CheckpointError."""
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
