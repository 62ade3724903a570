"""PyTorch files (zip or legacy) -> a flat dict of tensors, memory-mapped; nothing in them is run.

torch's restricted unpickler reads tensors and plain containers. Training scripts also store an
optimizer, their arguments or numpy scalars: those few names become inert stand-ins, so the tensors
beside them can be read. Any other name in the file is refused.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from save_deploy.errors import CheckpointError

WRAPPERS = ("model", "state_dict", "model_state_dict")
# DataParallel, Lightning-like wrappers, GAVS's AVSM, torch.compile
PREFIXES = ("module.", "model.", "model_v.", "_orig_mod.")
# Names whose objects are replaced by a stand-in that keeps nothing and does nothing.
_INERT_PREFIX = "torch.optim."
_INERT = frozenset(
    {
        "argparse.Namespace",
        "collections.defaultdict",
        "builtins.dict",  # factories of a defaultdict
        "builtins.list",
        "builtins.int",
        "builtins.float",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
    }
)
_HEAD = 512


@dataclass(frozen=True)
class PthFile:
    """The tensors of a file under their bare names, and what surrounded them."""

    tensors: dict[str, Tensor]
    wrapper: str  # "model" for {'model': {...}}, "" for a bare dict
    prefix: str  # stripped from every name: "module." after DataParallel
    dropped: tuple[str, ...]  # entries that are no tensor of the model: optimizer, epoch, args


class _Inert:
    """Stands for an object that is not wanted: ignores arguments and state."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def _plain_dict(*_args: Any) -> dict[Any, Any]:
    """For a defaultdict: torch fills exact dicts only."""
    return {}


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file by bare name. Raises CheckpointError."""
    return open_pth(path).tensors


def open_pth(path: Path, *, shapes_only: bool = False) -> PthFile:
    """Read, unwrap and strip common prefixes. Zip files are memory-mapped: no weight is read yet.

    shapes_only: meta tensors, so that a legacy file is not held in memory either.
    Raises CheckpointError for a file that is no PyTorch file, is incomplete, refers to anything
    but tensors, plain values and the inert names above, or holds no tensor.
    """
    _check_head(path)
    loaded = _unpickle(path, "meta" if shapes_only else "cpu")
    if not isinstance(loaded, dict):
        raise CheckpointError(
            "checkpoint is not a dict of tensors",
            got=f"{path}: {_describe(loaded)}",
            expected="torch.save(model.state_dict(), PATH)",
        )
    inner, wrapper, dropped = _unwrap(loaded)
    tensors = {k: v.detach() for k, v in inner.items() if isinstance(k, str) and _is_dense(v)}
    dropped += [str(k) for k, v in inner.items() if k not in tensors]
    if not tensors:
        raise CheckpointError(
            "no tensors in the checkpoint",
            got=f"{path} with entries such as {', '.join(map(str, list(loaded)[:3])) or 'none'}",
            expected="a dict of tensors, bare or under " + ", ".join(WRAPPERS),
        )
    stripped, prefix = strip_prefixes(tensors)
    return PthFile(stripped, wrapper, prefix, tuple(dropped))


def strip_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """-> the same tensors without the prefixes that every name shares, and what was removed."""
    removed = ""
    while True:
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in tensors)), None)
        if prefix is None:
            return tensors, removed
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
        removed += prefix


def _unwrap(loaded: dict[Any, Any]) -> tuple[dict[Any, Any], str, list[str]]:
    """-> the dict that holds the tensors, the entry it came from, and the entries beside it."""
    wrapper = ""
    dropped: list[str] = []
    while True:
        name = next((w for w in WRAPPERS if isinstance(loaded.get(w), dict)), None)
        if name is None:
            return loaded, wrapper, dropped
        dropped += [str(k) for k in loaded if k != name]
        wrapper = f"{wrapper}.{name}" if wrapper else name
        loaded = loaded[name]


def _is_dense(value: Any) -> bool:
    """A plain tensor: not sparse, not quantized."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided
    return plain and not value.is_quantized


def _unpickle(path: Path, device: str) -> Any:
    """torch.load, restricted; repeated with one more stand-in whenever an inert name is met."""
    stand_ins: dict[str, Any] = {}
    while True:
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals([(v, k) for k, v in stand_ins.items()]),
                contextlib.ExitStack() as stack,
            ):
                warnings.simplefilter("ignore")
                if device == "meta":  # a legacy file would be read through all the same
                    stack.enter_context(torch.serialization.skip_data())
                mmap = device == "cpu" and _is_zip(path)
                return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            name = _refused(error)
            inert = name is not None and (name in _INERT or name.startswith(_INERT_PREFIX))
            if name is None or not inert or name in stand_ins:
                raise _holds_more(path, name) from error
            stand_ins[name] = _plain_dict if name == "collections.defaultdict" else _Inert
        except Exception as error:  # a damaged pickle fails in any way: IndexError, TypeError, ...
            text = (str(error).splitlines() or [""])[0].split(". ")[0]
            if len(text.split()) < 2:  # a KeyError says only '105'
                text = f"its content ends in a {type(error).__name__}"
            raise _unreadable(path, text, "it looks truncated or is not a PyTorch file") from error


def _refused(error: pickle.UnpicklingError) -> str | None:
    """The global torch refused, from its message; builtins come without their module."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        return None
    return named[1] if "." in named[1] else f"builtins.{named[1]}"


def _holds_more(path: Path, name: str | None) -> CheckpointError:
    what = f"a reference to {name}" if name else "no tensors that can be read safely"
    return CheckpointError(
        "checkpoint holds more than tensors and is not opened",
        got=f"{path}: {what}",
        expected="a dict of tensors",
        hint="save only the weights: torch.save(model.state_dict(), PATH), or write safetensors",
    )


def _unreadable(path: Path, got: str, why: str) -> CheckpointError:
    return CheckpointError(
        "checkpoint cannot be read",
        got=f"{path}: {got}",
        expected="a complete PyTorch file",
        hint=f"download or copy it again: {why}",
    )


def _check_head(path: Path) -> None:
    """Name what is often found in place of a checkpoint."""
    if not path.is_file():
        raise CheckpointError("checkpoint not found", got=str(path), expected="a PyTorch file")
    head = _head(path)
    text = head.lstrip().lower()
    if not head:
        raise _unreadable(path, "an empty file", "nothing was written")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _unreadable(path, "a web page", "the link led to a page, not to the file")
    if text.startswith(b"version https://git-lfs"):
        raise _unreadable(path, "a Git LFS pointer", "run git lfs pull")
    if is_safetensors(path):
        raise CheckpointError(
            "checkpoint with the wrong suffix",
            got=f"{path}: a safetensors file",
            expected="a PyTorch file",
            hint=f"mv {path} {path.with_suffix('.safetensors')}",
        )


def is_safetensors(path: Path) -> bool:
    """True when the content is safetensors, whatever the suffix: a length, then a JSON object."""
    return re.match(rb'.{8}\{\s*["}]', _head(path), re.DOTALL) is not None


def _is_zip(path: Path) -> bool:
    return _head(path).startswith(b"PK\x03\x04")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _describe(value: Any) -> str:
    return "an optimizer or scheduler" if isinstance(value, _Inert) else f"a {type(value).__name__}"
