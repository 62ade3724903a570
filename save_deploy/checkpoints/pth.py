"""Reading of PyTorch files (zip or legacy) as memory-mapped tensors, without executing code.

torch's restricted unpickler reads tensors and plain containers. Training scripts also store an
optimizer, their arguments or numpy scalars: these few names are replaced by inert objects, so that
the tensors can be read. Any other name in the file is rejected.
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

from save_deploy.checkpoints.native import DTYPES
from save_deploy.errors import CheckpointError
from save_deploy.weight_files import check_head, check_zip, is_zip, unreadable

# Entries that contain the model, most likely first; other entries only if no tensor is beside them
WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "network", "weights", "params", "ema")
_TYPES = frozenset(DTYPES.values())
_DEEPEST = 8  # a pickled dict may contain itself
_MOST_SHARED = 4  # bytes that tensors describe, over those stored: tied weights give 2
# Names that are replaced by an inert object without content.
_INERT_PREFIX = "torch.optim."
_INERT = frozenset(
    {
        "argparse.Namespace",
        "builtins.dict",  # factory of a defaultdict
        "builtins.list",
        "builtins.int",
        "builtins.float",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
    }
)
# dict subclasses; Lightning stores a model's arguments in one
_DICTS = frozenset(
    {
        "collections.defaultdict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    }
)


@dataclass(frozen=True)
class PthFile:
    """Tensors of a file under their stored names, and what surrounds them."""

    tensors: dict[str, Tensor]
    wrapper: str  # "model" for {'model': {...}}, "" for a bare dict
    dropped: tuple[str, ...]  # entries that are not tensors of the model: optimizer, epoch, args


class _Inert:
    """Replacement for an unwanted object; ignores arguments and state."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def _plain_dict(*_args: Any) -> dict[Any, Any]:
    """Replace a defaultdict, because torch fills only exact dicts."""
    return {}


def open_pth(path: Path, *, shapes_only: bool = False) -> PthFile:
    """Read and unwrap a PyTorch file. Zip files are memory-mapped, so no weight is read yet.

    shapes_only: return meta tensors, so that a legacy file is not held in memory either.
    Raises CheckpointError for a file that is not a PyTorch file, is incomplete, refers to anything
    except tensors, plain values and the inert names above, has no tensor, or has one that is larger
    than what is stored of it.
    """
    check_head(path)
    if is_zip(path):
        check_zip(path)
    device = "meta" if shapes_only else "cpu"
    loaded = _unpickle(path, device)
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
    for name, tensor in tensors.items():
        _check_stored(path, name, tensor, device)
    _check_shared(path, tensors)
    return PthFile(tensors, wrapper, tuple(dropped))


def _check_stored(path: Path, name: str, tensor: Tensor, device: str) -> None:
    """Raise CheckpointError for a tensor whose strides repeat values, or that has none stored.

    A file of a kilobyte can describe terabytes in this way, which the next conversion allocates.
    """
    stored = tensor.untyped_storage().nbytes() if tensor.device.type == device else 0
    if tensor.nbytes > stored:
        raise CheckpointError(
            "a tensor of the checkpoint is larger than what is stored of it",
            got=f"{path}: {name} {tuple(tensor.shape)}, {tensor.nbytes} bytes of {stored}",
            expected="every value stored",
            hint="save contiguous tensors: torch.save({k: v.contiguous() ...}), or download it again",
        )


def _check_shared(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError when many tensors are views of the same stored values."""
    stored = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors.values()}
    described = sum(t.nbytes for t in tensors.values())
    if described > _MOST_SHARED * sum(stored.values()):
        raise CheckpointError(
            "the tensors of the checkpoint are larger than what is stored of them",
            got=f"{path}: {described} bytes of {sum(stored.values())}",
            expected="values that few tensors share",
            hint="save contiguous tensors: torch.save({k: v.contiguous() ...}), or download it again",
        )


def _unwrap(loaded: dict[Any, Any]) -> tuple[dict[Any, Any], str, list[str]]:
    """Return the dict with the tensors, the entry it is from, and the entries beside it."""
    entries: list[str] = []
    dropped: list[str] = []
    while len(entries) < _DEEPEST:
        held = {k: n for k, v in loaded.items() if isinstance(k, str) and (n := _count(v))}
        name = next((w for w in WRAPPERS if w in held), None)
        if name is None and held and not any(_is_dense(v) for v in loaded.values()):
            name = max(held, key=held.__getitem__)
        if name is None:
            break
        dropped += [str(k) for k in loaded if k != name]
        entries.append(name)
        loaded = loaded[name]
    return loaded, ".".join(entries), dropped


def _count(value: Any) -> int:
    """Return the number of named tensors in nested dicts. Tensors of an optimizer have numbers."""
    waiting, count = [value], 0
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict) and id(found) not in seen:
            seen.add(id(found))
            waiting += [v for k, v in found.items() if isinstance(k, str)]
        count += _is_dense(found)
    return count


def _is_dense(value: Any) -> bool:
    """Return True for a tensor of plain numbers: not sparse, nested, negated, quantized, complex."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
    return plain and not value.is_neg() and value.dtype in _TYPES


def _unpickle(path: Path, device: str) -> Any:
    """Run restricted torch.load, repeated with one more replacement for each inert name found."""
    stand_ins: dict[str, Any] = {}
    while True:
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals([(v, k) for k, v in stand_ins.items()]),
                contextlib.ExitStack() as stack,
            ):
                warnings.simplefilter("ignore")
                if device == "meta":  # otherwise a legacy file would be read completely
                    stack.enter_context(torch.serialization.skip_data())
                mmap = device == "cpu" and is_zip(path)
                return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            name = _refused(error)
            known = name is not None and (name in _INERT | _DICTS or name.startswith(_INERT_PREFIX))
            if name is None or not known or name in stand_ins:
                raise _holds_more(path, name) from error
            stand_ins[name] = _plain_dict if name in _DICTS else _Inert
        except Exception as error:  # a damaged pickle can raise any exception
            text = (str(error).splitlines() or [""])[0].split(". ")[0]
            if len(text.split()) < 2:  # the text of a KeyError is only '105'
                text = f"its content ends in a {type(error).__name__}"
            raise unreadable(path, text, "it is truncated or not a weight file") from error


def _refused(error: pickle.UnpicklingError) -> str | None:
    """Return the global that torch rejected, from its message. Builtins appear without a module."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        return None
    return named[1] if "." in named[1] else f"builtins.{named[1]}"


def _holds_more(path: Path, name: str | None) -> CheckpointError:
    what = f"a reference to {name}" if name else "no tensors that can be read safely"
    return CheckpointError(
        "checkpoint contains more than tensors and is not opened",
        got=f"{path}: {what}",
        expected="a dict of tensors",
        hint="save only the weights: torch.save(model.state_dict(), PATH), or write safetensors",
    )


def _describe(value: Any) -> str:
    return "an optimizer or scheduler" if isinstance(value, _Inert) else f"a {type(value).__name__}"
