"""The calls of NVIDIA's cuda-bindings that sessions need; a failed call is a BackendError.

Not tested on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import BackendError

INSTALL = 'pip install "save-deploy[cuda]"'
LEGACY_STREAM = 1  # cudaStreamLegacy: the stream of libraries that use no streams


class Cuda:
    """Interface to CUDA. Pointers are ints; streams and graphs are handles of cuda-bindings."""

    def __init__(self) -> None:
        """Import cuda-bindings without using a GPU.

        Raises BackendError when it is not installed.
        """
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise BackendError(
                "cuda-bindings is not installed",
                got=str(error),
                expected="the package cuda-bindings",
                hint=INSTALL,
            ) from error

    def _call(self, name: str, *arguments: Any) -> Any:
        """Return the value of a call without its status. Raises BackendError for a failed call."""
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status):
            _, text = self._runtime.cudaGetErrorString(status)
            raise BackendError(
                "CUDA call failed",
                got=f"{name}: {text.decode()} ({int(status)})",
                expected="success",
                hint="save-doctor: it shows the driver, the memory and the libraries",
            )
        return values[0] if values else None

    def use_device(self, device: int) -> None:
        """Select the device of the calling thread."""
        self._call("cudaSetDevice", device)

    def allocate(self, n_bytes: int) -> int:
        return int(self._call("cudaMalloc", n_bytes))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> tuple[int, NDArray[Any]]:
        """Allocate page-locked host memory and an array in it; free it with free_pinned.

        Drop the array after that.
        """
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = int(self._call("cudaMallocHost", n_bytes))
        memory = (ctypes.c_uint8 * n_bytes).from_address(pointer)
        return pointer, np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def free_pinned(self, pointer: int) -> None:
        self._call("cudaFreeHost", pointer)

    def new_stream(self) -> Any:
        """Create a stream that is independent of the legacy stream, for captures."""
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def synchronize(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        self._call("cudaStreamDestroy", stream)

    def to_device(self, pointer: int, host: int, n_bytes: int, stream: Any) -> None:
        self._copy(pointer, host, n_bytes, "cudaMemcpyHostToDevice", stream)

    def to_host(self, host: int, pointer: int, n_bytes: int, stream: Any) -> None:
        self._copy(host, pointer, n_bytes, "cudaMemcpyDeviceToHost", stream)

    def on_device(self, target: int, source: int, n_bytes: int, stream: Any) -> None:
        self._copy(target, source, n_bytes, "cudaMemcpyDeviceToDevice", stream)

    def _copy(self, target: int, source: int, n_bytes: int, kind: str, stream: Any) -> None:
        kinds = self._runtime.cudaMemcpyKind
        self._call("cudaMemcpyAsync", target, source, n_bytes, getattr(kinds, kind), stream)

    def begin_capture(self, stream: Any) -> None:
        """Start recording a CUDA graph. Other threads may call CUDA meanwhile."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """Return the captured graph, ready to launch; destroy it with destroy_graph."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)
