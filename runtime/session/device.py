"""Arrays on the GPU from other libraries: DLPack or __cuda_array_interface__.

Not tested on a GPU; reading of DLPack was tested with CPU arrays.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from save_deploy.bundle import TensorSpec
from save_deploy.errors import DataError
from save_deploy.runtime.session.cuda import LEGACY_STREAM, Cuda

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_DLPACK_KINDS = {0: "int", 1: "uint", 2: "float", 6: "bool"}


@dataclass(frozen=True)
class DeviceArray:
    """C-contiguous array in GPU memory, shared by DLPack or __cuda_array_interface__.

    place: DLPack's device type and number.
    owner: object that keeps foreign memory alive; None for a session's own buffer, which its next
        call overwrites and its close() frees.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any = None
    place: tuple[int, int] = (_DLPACK_CUDA[0], 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """Return a capsule of this memory.

        The session waited, so the values are complete on every stream.
        """
        return make_capsule(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": None,  # finished: the session waited for it
        }


def device_input(
    inputs: Mapping[str, Any], tensor: TensorSpec, cuda: Cuda, stream: int | None = None
) -> DeviceArray:
    """Return the named input as a device array whose values are complete on `stream`.

    Without a stream the values are complete on return. Raises DataError for a missing input, host
    memory, and another dtype, shape or layout.
    """
    if tensor.name not in inputs:
        raise DataError(
            "wrong input names", got=", ".join(sorted(inputs)), expected=f"{tensor.name} among them"
        )
    given = inputs[tensor.name]
    if hasattr(given, "__dlpack__"):
        found = _from_dlpack(given, stream)
        if stream is None:
            cuda.synchronize(LEGACY_STREAM)
    elif hasattr(given, "__cuda_array_interface__"):
        found = _from_interface(given, cuda)
    else:
        raise _wrong(tensor, f"{type(given).__name__}, no array on a GPU")
    if (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
        raise _wrong(tensor, f"{found.dtype} {found.shape}")
    return found


def _wrong(tensor: TensorSpec, got: str) -> DataError:
    expected = f"{tensor.dtype} {tensor.shape} on a GPU ({tensor.meaning})"
    return DataError(f"wrong input {tensor.name}", got=got, expected=expected)


def _from_interface(given: Any, cuda: Cuda) -> DeviceArray:
    interface = given.__cuda_array_interface__
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    _require_contiguous(shape, interface.get("strides"), dtype.itemsize)
    # without a stream the values are assumed to be made on the legacy one
    cuda.synchronize(interface.get("stream") or LEGACY_STREAM)
    return DeviceArray(interface["data"][0], shape, dtype.name, given)


def _require_contiguous(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, step: int = 1
) -> None:
    if strides is None:
        return
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != step:
            raise DataError(
                "array on the GPU is not contiguous",
                got=f"strides {tuple(strides)} of shape {shape}",
                expected="C order without gaps",
            )
        step *= length


_py = lambda name, *types: ctypes.PYFUNCTYPE(*types)((name, ctypes.pythonapi))
_pointer_of = _py("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
# of a capsule that is being destroyed: it must not become a Python object again
_raw_pointer_of = _py("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_raw_is_valid = _py("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_new_capsule = _py(
    "PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _from_dlpack(given: Any, stream: int | None) -> DeviceArray:
    """Return the array of a DLPack producer, which orders its work before `stream`.

    Raises DataError unless the array is on a GPU.
    """
    if given.__dlpack_device__()[0] not in _DLPACK_CUDA:
        raise DataError(
            "array is not on a GPU", got=f"DLPack device {given.__dlpack_device__()}",
            expected="an array in GPU memory", hint="infer() takes arrays of the host",
        )  # fmt: skip
    return read_capsule(given.__dlpack__(stream=stream or LEGACY_STREAM))


def read_capsule(capsule: Any) -> DeviceArray:
    """Return what a DLPack capsule describes.

    It stays unconsumed, so dropping it frees the memory.
    """
    tensor = _Tensor.from_address(_pointer_of(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    _require_contiguous(shape, strides)
    kind = _DLPACK_KINDS.get(tensor.code, f"kind{tensor.code}_")
    dtype = "bool" if kind == "bool" else f"{kind}{tensor.bits}"
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, capsule)


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h; its consumer calls `deleter` at the end."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Managed._fields_ = [
    ("tensor", _Tensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
]
_NAME = b"dltensor"  # a capsule keeps the pointer to its name
_CODES = {kind: code for code, kind in _DLPACK_KINDS.items()}
# what capsules point to, by address, until it is deleted
_given: dict[int, tuple[Any, ...]] = {}


def _delete(address: int) -> None:
    _given.pop(address, None)


def _drop(capsule: int) -> None:
    """Delete the tensor of a capsule that no consumer has taken (which would rename it)."""
    if _raw_is_valid(capsule, _NAME):
        _delete(_raw_pointer_of(capsule, _NAME))


# kept as long as this module: others call them
_deleter, _dropped = _Deleter(_delete), ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_drop)


def make_capsule(array: DeviceArray) -> Any:
    """Return a DLPack capsule of the array, which keeps the array alive."""
    dtype = np.dtype(array.dtype)
    kind = "bool" if dtype.kind == "b" else dtype.name.rstrip("0123456789")
    shape = (ctypes.c_int64 * len(array.shape))(*array.shape)
    managed = _Managed()
    tensor = managed.tensor
    tensor.data, tensor.ndim, tensor.shape = array.pointer, len(array.shape), shape
    tensor.device_type, tensor.device_id = array.place
    tensor.code, tensor.bits, tensor.lanes = _CODES[kind], 8 * dtype.itemsize, 1
    managed.deleter = _deleter
    address = ctypes.addressof(managed)
    _given[address] = (array, managed, shape)
    return _new_capsule(address, _NAME, ctypes.cast(_dropped, ctypes.c_void_p))
