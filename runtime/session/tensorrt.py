"""Session on a built engine: full TensorRT and TensorRT-RTX, without torch.

Not tested on a GPU; the sequence of calls was tested with fakes of both libraries.
"""

from __future__ import annotations

import importlib
import logging
import mmap
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError, BundleError
from save_deploy.runtime.engine_check import engine_validity, last_error_logger
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.device import DeviceArray
from save_deploy.runtime.session.tensorrt_worker import RuntimeCache, Worker, closed

RTX = "tensorrt_rtx"
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
_log = logging.getLogger(__name__)


class TensorRtSession:
    """An engine file, run by several threads in parallel.

    Every calling thread gets an execution context, a stream and buffers, which a later thread
    reuses when it has ended. The engine with its weights is shared. A session that is dropped
    without close() is freed too. Shapes are those of the spec, so there is one CUDA graph per
    thread: TensorRT-RTX captures it itself; for full TensorRT it is captured after a first plain
    run.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        library: str,
        host_code: bool = False,
        cuda_graph: bool = True,
        cache_dir: Path | None = None,
        refit_from: Path | None = None,
        device: int = 0,
    ) -> None:
        """Load an engine file that engine_check has accepted: unaltered and trusted.

        library: tensorrt or tensorrt_rtx.
        host_code: allow a version-compatible engine to run the code it contains; the library
            rejects it otherwise.
        cache_dir: cache of the kernels that TensorRT-RTX compiles in the first run; it must belong
            to this file.
        refit_from: ONNX file with the weights of an engine built without them.
        Raises BackendError when the library rejects the engine or a CUDA call fails, and
        BundleError when the engine has other inputs and outputs than the spec.
        """
        self.backend, self.spec, self._device = library, spec, device
        self._trt, self._cuda = importlib.import_module(library), Cuda()
        self._cuda_graph = cuda_graph
        self._logger = last_error_logger(library)
        self._local = threading.local()
        self._require_valid(path)
        self._cuda.use_device(device)
        self._held = _Held(self._trt.Runtime(self._logger))
        if host_code:
            self._held.runtime.engine_host_code_allowed = True  # it carries its own runtime
        self._held.engine = self._deserialize(path)
        if refit_from is not None:
            self._refit(refit_from)
        self._check_spec(path)
        if library == RTX:
            self._held.config = self._held.engine.create_runtime_config()
            self._held.cache = RuntimeCache(self._held.config, cache_dir)
            if cuda_graph:
                strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                self._held.config.cuda_graph_strategy = strategy
        self._dropped = weakref.finalize(self, _Held.release_quietly, self._held)

    def infer(self, inputs: Arrays) -> Arrays:
        """Run named arrays of the spec, in any memory layout; return new named arrays."""
        self.spec.check_inputs(inputs)
        return self._with_worker(lambda worker: worker.infer(inputs))

    def infer_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Run device arrays (DLPack or __cuda_array_interface__) and return device arrays.

        Nothing is copied to the host. The outputs are this thread's own buffers, valid until its
        next call and until close(). Raises DataError for arrays of another dtype, shape or place.
        """
        return self._with_worker(lambda worker: worker.infer_device(inputs))

    def close(self) -> None:
        """Free everything after running calls have finished. A second call does nothing.

        Raises the first BackendError after the rest is freed too.
        """
        self._dropped.detach()
        self._held.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _with_worker(self, call: Callable[[Worker], Any]) -> Any:
        worker: Worker | None = getattr(self._local, "worker", None)
        is_first = worker is None
        if worker is None:
            with self._held.lock:
                if not self._held.is_open:
                    raise closed()
                self._cuda.use_device(self._device)  # CUDA's choice of a device is per thread
                worker = self._held.idle_worker()
                if worker is None:
                    worker = Worker(self._cuda, self._new_context, self.spec, self._captures)
                self._held.give(worker)
                self._local.worker = worker
        result = worker.exclusive(call)
        if is_first:
            self._held.save_cache()  # what was compiled is kept even if the process is killed later
        return result

    @property
    def _captures(self) -> bool:
        return self._cuda_graph and self.backend != RTX

    def _new_context(self) -> Any:
        config = self._held.config
        context = self._held.engine.create_execution_context(*(() if config is None else (config,)))
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
            engine = self._held.runtime.deserialize_cuda_engine(data)
        if engine is None:  # it never raises
            raise self._failed(f"{self.backend} cannot load {path.name}", "an engine")
        return engine

    def _refit(self, onnx: Path) -> None:
        """Load weights of an ONNX file into an engine that was built without them.

        Written from the documentation; such an engine cannot be built without a driver.
        """
        self._logger.last = ""
        refitter = self._trt.Refitter(self._held.engine, self._logger)
        parser = self._trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
            raise self._failed(
                f"{self.backend} cannot take the engine's weights from {onnx.name}",
                "all weights of the engine; without --strip-weights it carries them itself",
            )

    def _failed(self, what: str, expected: str) -> BackendError:
        got = self._logger.last or "no reason given"
        hint = "save-doctor BUNDLE, or build the engine again"
        return BackendError(what, got=got[:300], expected=expected, hint=hint)

    def _check_spec(self, path: Path) -> None:
        engine, found = self._held.engine, {}
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


class _Held:
    """Resources of a session, in a separate object so that a dropped session frees them too."""

    def __init__(self, runtime: Any) -> None:
        self.lock, self.is_open = threading.Lock(), True
        self.runtime: Any = runtime
        self.engine: Any = None
        self.config: Any = None
        self.cache: RuntimeCache | None = None
        self._workers: dict[Worker, weakref.ref[threading.Thread]] = {}

    def idle_worker(self) -> Worker | None:
        """Return a worker whose thread has ended, or None."""
        for worker, owner in self._workers.items():
            thread = owner()
            if thread is None or not thread.is_alive():
                return worker
        return None

    def give(self, worker: Worker) -> None:
        """Assign a worker to the calling thread."""
        self._workers[worker] = weakref.ref(threading.current_thread())

    def save_cache(self) -> None:
        with self.lock:
            if self.cache is not None:
                self.cache.save()

    def release(self) -> None:
        with self.lock:
            if not self.is_open:
                return
            self.is_open = False
            workers, self._workers = list(self._workers), {}
        self.save_cache()
        errors: list[BackendError] = []
        for worker in workers:
            try:
                worker.close()
            except BackendError as error:
                errors.append(error)
        # contexts first, then the objects they were made of
        self.cache = self.config = self.engine = self.runtime = None
        if errors:
            raise errors[0]

    def release_quietly(self) -> None:
        """Free everything without raising, for the garbage collector and the end of the process."""
        try:
            self.release()
        except BackendError as error:
            _log.warning("a session was not freed cleanly: %s", error.got)
