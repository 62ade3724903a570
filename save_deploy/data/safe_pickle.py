"""Safe reading of the two kinds of pickle in released datasets: no code in them is executed.

A pickle can name and call any function of any module. Here the only allowed names are those that a
tensor needs, replaced by functions of this file. A list of names may use none.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from save_deploy.data.examples import LogMel
from save_deploy.data.log_mel import EXAMPLE_FRAMES, N_MELS
from save_deploy.errors import DataError

MAX_BYTES = 64 << 20
MAX_EXAMPLES = 1000
_MAX_TEXT = 1000  # characters of a text in the pickles of a storage: names of types and keys
_STORAGE_PICKLES = 5  # in torch's legacy format: magic number, protocol, machine, object, keys
Globals = dict[tuple[str, str], Callable[..., Any]]


def load_log_mel(path: Path) -> LogMel:
    """Read a stored log-mel tensor as float32 (n,1,96,64), without its gradient flag.

    Raises DataError for a file that is missing, truncated or contains anything but a tensor, and
    for a tensor of another type or shape or with NaN.
    """
    import torch

    expected = f"a float32 tensor (n,1,{EXAMPLE_FRAMES},{N_MELS})"
    tensor = _load(path, _tensor_globals(path), expected)
    if not isinstance(tensor, torch.Tensor):
        raise DataError(
            "pickle is not a tensor", got=f"{type(tensor).__name__} in {path}", expected=expected
        )
    shape = tuple(tensor.shape)
    fits = len(shape) == 4 and shape[1:] == (1, EXAMPLE_FRAMES, N_MELS)
    if not fits or not 1 <= shape[0] <= MAX_EXAMPLES or tensor.dtype != torch.float32:
        raise DataError(
            "wrong log-mel tensor", got=f"{tensor.dtype} {shape} in {path}", expected=expected
        )
    values = np.array(tensor.detach().numpy(), np.float32)
    if not np.isfinite(values).all():
        raise DataError(
            "log-mel contains NaN or infinite values", got=str(path), expected="finite values"
        )
    return values


def load_audio_names(path: Path) -> dict[int, list[str]]:
    """Read category_for_vggsound_audios.pkl: class -> names of its sounds.

    Raises DataError as load_log_mel does.
    """
    expected = "a dict of int -> list of str"
    found = _load(path, {}, expected)
    good = isinstance(found, dict) and all(
        type(key) is int
        and isinstance(names, list)
        and names
        and all(isinstance(name, str) for name in names)
        for key, names in found.items()
    )
    if not good:
        raise DataError("wrong list of sounds", got=str(path), expected=expected)
    return dict(found)


class _Restricted(pickle.Unpickler):
    """Unpickler that resolves only the given names."""

    def __init__(self, file: BinaryIO, path: Path, allowed: Globals) -> None:
        super().__init__(file)
        self._path, self._allowed = path, allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise _refused(self._path, f"{module}.{name}")
        return self._allowed[module, name]


def _load(path: Path, allowed: Globals, expected: str) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(
                "pickle is too large",
                got=f"{path.stat().st_size} bytes in {path}",
                expected=f"at most {MAX_BYTES} bytes",
            )
        data = path.read_bytes()
        _check_memo(data)
        return _Restricted(io.BytesIO(data), path, allowed).load()
    except DataError:
        raise
    except OSError as error:
        raise DataError("pickle cannot be read", got=str(error), expected=expected) from error
    except Exception as error:  # a damaged pickle can raise any exception
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise DataError(
            "pickle is damaged", got=f"{path}: {reason.rstrip(': ')}", expected=expected
        ) from error


def _check_memo(data: bytes) -> None:
    """Raise ValueError for a memo index above the file's size: Python allocates that many entries."""
    for opcode, index, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(index or 0) > len(data):
            raise ValueError(f"memo index {index} in {len(data)} bytes")


def _tensor_globals(path: Path) -> Globals:
    """Return replacements for the names in a tensor's pickle.

    They are created per file, so that a pickle that modifies them changes nothing shared.
    """

    def rebuild(*args: Any) -> Any:
        from torch._utils import _rebuild_tensor_v2

        storage, offset, size, stride = args[:4]  # requires_grad, hooks and metadata are dropped
        return _rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())

    def from_bytes(data: bytes) -> Any:
        return _storage(path, data)

    def ordered() -> OrderedDict[Any, Any]:
        return OrderedDict()

    return {
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch.storage", "_load_from_bytes"): from_bytes,
        ("collections", "OrderedDict"): ordered,
    }


def _storage(path: Path, data: bytes) -> Any:
    """Read the values, a nested pickle, with torch's own restricted reader."""
    import torch

    _check_texts(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles that it then rejects
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name is None:
            raise
        raise _refused(path, name.group(1)) from error


def _check_texts(data: bytes) -> None:
    """Raise ValueError for a long text: torch searches its errors with a regex of quadratic time."""
    stream = io.BytesIO(data)
    for _ in range(_STORAGE_PICKLES):
        for _, value, _ in pickletools.genops(stream):
            if isinstance(value, (str, bytes)) and len(value) > _MAX_TEXT:
                raise ValueError(f"a text of {len(value)} characters in the values of a tensor")


def _refused(path: Path, name: str) -> DataError:
    return DataError(
        "pickle contains more than a tensor or a list",
        got=f"{name[:100]} in {path}",
        expected="only data; no code was executed",
        hint="do not open this file with other tools; download the dataset again",
    )
