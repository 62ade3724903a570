"""Resources of a thread that runs an engine, and the cache of kernels compiled for this GPU.

Not tested on a GPU; the sequence of calls was tested with fakes of both libraries.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import Arrays, GraphSpec, TensorSpec
from save_deploy.errors import BackendError
from save_deploy.files import keep_in_cache
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.device import DeviceArray, device_input

_log = logging.getLogger(__name__)


class Worker:
    """Resources of one thread: stream, host and device buffers, context, CUDA graph."""

    def __init__(
        self, cuda: Cuda, new_context: Callable[[], Any], spec: GraphSpec, capture: bool
    ) -> None:
        self._cuda, self._spec, self._capture = cuda, spec, capture
        self._lock, self._graph, self._context = threading.Lock(), None, None
        self._host: Arrays = {}
        self._pointers: dict[str, int] = {}
        with ExitStack() as stack:  # frees in reverse order, also after a failure in the middle
            self._stream = cuda.new_stream()
            stack.callback(cuda.destroy_stream, self._stream)
            for tensor in (*spec.inputs, *spec.outputs):
                self._allocate(tensor, stack)
            self._context = new_context()
            stack.callback(self._drop_context)
            for name, pointer in self._pointers.items():
                self._require(self._context.set_tensor_address(name, pointer), f"address of {name}")
            self._stack = stack.pop_all()

    def exclusive(self, call: Callable[[Worker], Any]) -> Any:
        """Run a call unless closed; close() waits for it."""
        with self._lock:
            if self._context is None:
                raise closed()
            return call(self)

    def infer(self, inputs: Arrays) -> Arrays:
        for tensor in self._spec.inputs:
            host = self._host[tensor.name]
            np.copyto(host, inputs[tensor.name])
            self._cuda.to_device(
                self._pointers[tensor.name], host.ctypes.data, host.nbytes, self._stream
            )
        self._execute()
        outputs = [(t.name, self._host[t.name]) for t in self._spec.outputs]
        for name, host in outputs:
            self._cuda.to_host(host.ctypes.data, self._pointers[name], host.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: host.copy() for name, host in outputs}

    def infer_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        given = [device_input(inputs, t, self._cuda, int(self._stream)) for t in self._spec.inputs]
        for tensor, array in zip(self._spec.inputs, given, strict=True):
            # the graph reads fixed addresses; a copy on the device costs microseconds
            n_bytes = self._host[tensor.name].nbytes
            target = self._pointers[tensor.name]
            self._cuda.on_device(target, array.pointer, n_bytes, self._stream)
        self._execute()
        self._cuda.synchronize(self._stream)
        return {
            t.name: DeviceArray(self._pointers[t.name], t.shape, t.dtype)
            for t in self._spec.outputs
        }

    def close(self) -> None:
        """Free everything, even when a call fails; then raise the BackendError."""
        with self._lock:
            if self._context is not None:
                try:
                    self._cuda.synchronize(self._stream)
                finally:
                    self._stack.close()

    def _allocate(self, tensor: TensorSpec, stack: ExitStack) -> None:
        pointer, host = self._cuda.pinned(tensor.shape, tensor.dtype)
        stack.callback(self._cuda.free_pinned, pointer)
        self._host[tensor.name] = host
        self._pointers[tensor.name] = self._cuda.allocate(host.nbytes)
        stack.callback(self._cuda.free, self._pointers[tensor.name])

    def _execute(self) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
            return
        self._enqueue()
        if self._capture:  # after a plain run, which does the work that may not be captured
            self._cuda.synchronize(self._stream)
            self._record()

    def _record(self) -> None:
        """Record one run as a CUDA graph. After a failure, which is logged, runs stay plain.

        The results of the previous plain run are kept.
        """
        graph = None
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue()
            finally:  # a stream that still captures cannot be used
                graph = self._cuda.end_capture(self._stream)
        except BackendError as error:
            _log.warning("no CUDA graph, every run is launched by itself: %s", error.got)
            self._capture = False
            if graph is not None:
                self._cuda.destroy_graph(graph)
            return
        self._stack.callback(self._cuda.destroy_graph, graph)
        self._graph = graph

    def _enqueue(self) -> None:
        done = self._context and self._context.execute_async_v3(int(self._stream))
        self._require(done, "execution")

    def _require(self, done: Any, what: str) -> None:
        if not done:
            raise BackendError(
                f"the engine refuses: {what}", got="no success", expected="an accepted call",
                hint="save-doctor BUNDLE",
            )  # fmt: skip

    def _drop_context(self) -> None:
        self._context = None


class RuntimeCache:
    """File of the kernels that TensorRT-RTX compiles on the GPU in the first run.

    It makes the next start fast. The library rejects a file of another GPU, driver or version and
    starts a new one.
    """

    def __init__(self, config: Any, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "runtime.cache"
        self._cache, self._saved = config.create_runtime_cache(), b""
        if self._path is not None:
            with contextlib.suppress(OSError):  # none yet
                data = self._path.read_bytes()
                if self._cache.deserialize(data):
                    self._saved = data
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write changes and raise nothing. When that fails, the next start compiles again."""
        if self._path is None:
            return
        try:
            given = self._cache.serialize()
            data = b"" if given is None else bytes(given)
        except Exception as error:  # whatever the library raises
            _log.warning("compiled kernels were not kept: %r", error)
            return
        if data in (b"", self._saved):
            return
        if keep_in_cache(self._path, lambda path: path.write_bytes(data)):
            self._saved = data
        else:
            _log.warning("compiled kernels were not kept: %s cannot be written", self._path)


def closed() -> BackendError:
    return BackendError("session is closed", hint="open the bundle again")
