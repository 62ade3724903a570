"""Session on a built engine: full TensorRT and TensorRT-RTX, without torch.

Not run on a GPU yet: the sequence of calls was run against fakes of both libraries.
"""

from __future__ import annotations

import importlib
import logging
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from save_deploy.errors import BackendError, BundleError
from save_deploy.runtime.preflight.engine import engine_validity, last_error_logger
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.device import DeviceArray, device_input
from save_deploy.specs import Arrays, GraphSpec, TensorSpec

RTX = "tensorrt_rtx"
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
_log = logging.getLogger(__name__)


class TensorRtSession:
    """An engine file. Every thread that calls infer gets an execution context, a stream and buffers of
    its own (kept until close); the engine with its weights is shared, and calls run side by side.

    Shapes are those of the spec, so there is one CUDA graph per thread: TensorRT-RTX captures it
    itself, for full TensorRT it is captured after a first plain run.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        library: str,
        version_compatible: bool = False,
        cuda_graph: bool = True,
        cache_dir: Path | None = None,
        device: int = 0,
    ) -> None:
        """library: tensorrt or tensorrt_rtx. cache_dir: where TensorRT-RTX keeps the kernels that it
        compiles at the first run; it must belong to this very file. The preflight comes before: this
        trusts the file to be the one of the manifest.

        Raises BackendError when the library refuses the engine or a CUDA call fails, BundleError when
        the engine has other inputs and outputs than the spec.
        """
        self.backend, self.spec, self._device = library, spec, device
        self._trt, self._cuda = importlib.import_module(library), Cuda()
        self._cuda_graph = cuda_graph
        self._logger = last_error_logger(library)
        self._lock, self._local, self._is_open = threading.Lock(), threading.local(), True
        self._workers: list[_Worker] = []
        self._require_valid(path)
        self._cuda.use_device(device)
        self._runtime: Any = self._trt.Runtime(self._logger)
        if version_compatible:
            self._runtime.engine_host_code_allowed = True  # it carries its own runtime
        self._engine: Any = self._deserialize(path)
        self._check_spec(path)
        self._config, self._cache = None, None
        if library == RTX:
            self._config = self._engine.create_runtime_config()
            self._cache = _RuntimeCache(self._config, cache_dir)
            if cuda_graph:
                strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                self._config.cuda_graph_strategy = strategy

    def infer(self, inputs: Arrays) -> Arrays:
        """Named arrays as in the spec, any memory layout -> named arrays of the caller's own."""
        self.spec.check_inputs(inputs)
        return self._with_worker(lambda worker: worker.infer(inputs))

    def infer_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Device arrays (DLPack or __cuda_array_interface__) -> device arrays, no copy to the host.

        The outputs are this thread's own buffers: valid until its next call and until close().
        Raises DataError for arrays of another dtype, shape or place.
        """
        return self._with_worker(lambda worker: worker.infer_device(inputs))

    def close(self) -> None:
        """Free everything, after the calls that are running; a second close does nothing."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            workers, self._workers = self._workers, []
        self._save_cache()
        for worker in workers:
            worker.close()
        # contexts first, then what they were made of
        self._cache = self._config = self._engine = self._runtime = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _with_worker(self, call: Callable[[_Worker], Any]) -> Any:
        worker = getattr(self._local, "worker", None)
        is_first = worker is None
        if worker is None:
            with self._lock:
                if not self._is_open:
                    raise _closed()
                self._cuda.use_device(self._device)  # CUDA's choice of a device is per thread
                worker = _Worker(self._cuda, self._new_context, self.spec, self._captures)
                self._local.worker = worker
                self._workers.append(worker)
        result = worker.exclusive(call)
        if is_first:
            self._save_cache()  # a process that is killed keeps what it compiled
        return result

    @property
    def _captures(self) -> bool:
        return self._cuda_graph and self.backend != RTX

    def _new_context(self) -> Any:
        arguments = () if self._config is None else (self._config,)
        context = self._engine.create_execution_context(*arguments)
        if context is None:
            raise self._failed("no execution context could be made", "free GPU memory")
        return context

    def _require_valid(self, path: Path) -> None:
        validity, diagnostics = engine_validity(self.backend, path)
        if validity == "INVALID":
            raise BackendError(
                f"{self.backend} refuses {path.name}",
                got=", ".join(diagnostics) or self._logger.last or "no reason given",
                expected="an engine valid on this machine",
                hint="build the engine again",
            )

    def _deserialize(self, path: Path) -> Any:
        self._logger.last = ""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:  # it never raises
            raise self._failed(f"{self.backend} cannot load {path.name}", "an engine")
        return engine

    def _failed(self, what: str, expected: str) -> BackendError:
        got = self._logger.last or "no reason given"
        hint = "save-deploy doctor BUNDLE, or build the engine again"
        return BackendError(what, got=got[:300], expected=expected, hint=hint)

    def _check_spec(self, path: Path) -> None:
        engine, found = self._engine, {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            dtype = engine.get_tensor_dtype(name).name
            mode = engine.get_tensor_mode(name).name
            found[name] = (mode, _DTYPES.get(dtype, dtype), tuple(engine.get_tensor_shape(name)))
        wanted = {t.name: ("INPUT", t.dtype, t.shape) for t in self.spec.inputs}
        wanted |= {t.name: ("OUTPUT", t.dtype, t.shape) for t in self.spec.outputs}
        if found != wanted:
            raise BundleError(
                f"{path.name} has other inputs and outputs than the manifest",
                got=str(found),
                expected=str(wanted),
                hint="build the engine again",
            )

    def _save_cache(self) -> None:
        with self._lock:
            if self._cache is not None:
                self._cache.save()


class _Worker:
    """What one thread needs: stream, buffers on both sides, context, CUDA graph."""

    def __init__(
        self, cuda: Cuda, new_context: Callable[[], Any], spec: GraphSpec, capture: bool
    ) -> None:
        self._cuda, self._spec, self._capture = cuda, spec, capture
        self._lock, self._graph, self._context = threading.Lock(), None, None
        self._host: Arrays = {}
        self._pointers: dict[str, int] = {}
        with ExitStack() as stack:  # frees in reverse order, also when half of it failed
            self._stream = cuda.new_stream()
            stack.callback(cuda.destroy_stream, self._stream)
            for tensor in (*spec.inputs, *spec.outputs):
                self._allocate(tensor, stack)
            self._context = new_context()
            stack.callback(self._drop_context)
            for name, pointer in self._pointers.items():
                self._require(self._context.set_tensor_address(name, pointer), f"address of {name}")
            self._stack = stack.pop_all()

    def exclusive(self, call: Callable[[_Worker], Any]) -> Any:
        """Run a call unless closed; close() waits for it."""
        with self._lock:
            if self._context is None:
                raise _closed()
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
        with self._lock:
            if self._context is not None:
                self._cuda.synchronize(self._stream)
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
        if self._capture:  # after a plain run, which does what may not be captured
            self._cuda.synchronize(self._stream)
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue()
            finally:  # a stream left capturing could do nothing else
                graph = self._cuda.end_capture(self._stream)
                self._stack.callback(self._cuda.destroy_graph, graph)
            self._graph = graph

    def _enqueue(self) -> None:
        done = self._context and self._context.execute_async_v3(int(self._stream))
        self._require(done, "execution")

    def _require(self, done: Any, what: str) -> None:
        if not done:
            raise BackendError(
                f"the engine refuses: {what}", got="no success", expected="an accepted call",
                hint="save-deploy doctor BUNDLE",
            )  # fmt: skip

    def _drop_context(self) -> None:
        self._context = None


class _RuntimeCache:
    """TensorRT-RTX compiles kernels on the GPU at the first run; kept in a file, the next start is
    fast. The library itself rejects the file of another GPU, driver or version: then it is new."""

    def __init__(self, config: Any, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "runtime.cache"
        self._cache, self._saved = config.create_runtime_cache(), b""
        if self._path is not None and self._path.is_file():
            data = self._path.read_bytes()
            if self._cache.deserialize(data):
                self._saved = data
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what changed. A folder that cannot be written only costs the next start its time."""
        if self._path is None:
            return
        data = bytes(self._cache.serialize())
        if data == self._saved:
            return
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(data)
            os.replace(partial, self._path)
            self._saved = data
        except OSError as error:
            _log.warning("compiled kernels were not kept: %s", error)
            partial.unlink(missing_ok=True)


def _closed() -> BackendError:
    return BackendError("session is closed", hint="open the bundle again")
