"""Arrays on the GPU from other libraries: DLPack or __cuda_array_interface__.

Not run on a GPU yet; the reading of DLPack was run on arrays of the CPU.
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
    """C-contiguous array in GPU memory. torch.as_tensor(x, device="cuda") and cupy.asarray(x) share it.

    owner: keeps foreign memory alive; None for a session's own buffer, which its next call overwrites
    and its close() frees.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any = None

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
    """The named input as a device array whose values are complete on `stream` (default: at once).

    Raises DataError for a missing one, the host's memory, another dtype, shape or layout.
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
    """Raises DataError unless the array is on a GPU. The producer orders its work before `stream`."""
    if given.__dlpack_device__()[0] not in _DLPACK_CUDA:
        raise DataError(
            "array is not on a GPU", got=f"DLPack device {given.__dlpack_device__()}",
            expected="an array in GPU memory", hint="infer() takes arrays of the host",
        )  # fmt: skip
    return read_capsule(given.__dlpack__(stream=stream or LEGACY_STREAM))


def read_capsule(capsule: Any) -> DeviceArray:
    """A DLPack capsule -> what it describes. It stays unconsumed: dropping it frees the memory."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    _require_contiguous(shape, strides)
    kind = _DLPACK_KINDS.get(tensor.code, f"kind{tensor.code}_")
    dtype = "bool" if kind == "bool" else f"{kind}{tensor.bits}"
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, capsule)
