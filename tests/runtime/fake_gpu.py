"""Fakes of cuda.bindings.runtime and of TensorRT's module, for tests up to the device boundary.

Device memory is host memory, kernels are `output = 2 * input`. They prove which calls are made, in
which order and with which addresses; they prove nothing about a GPU.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from save_deploy.bundle import GraphSpec, TensorSpec
from save_deploy.runtime.engine_check import last_error_logger
from save_deploy.runtime.session.tensorrt import TensorRtSession

SPEC = GraphSpec(
    inputs=(TensorSpec("x", "float32", (1, 4), "four numbers"),),
    outputs=(TensorSpec("y", "float32", (1, 4), "their doubles"),),
)


class FakeStatus(int):
    """A cudaError_t."""


class FakeCudaRuntime(ModuleType):
    """cuda.bindings.runtime. `events`: every call in order; `failing`: name -> status to answer."""

    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.events: list[str] = []
        self.failing: dict[str, int] = {}
        self.memory: dict[int, Any] = {}
        self.devices: dict[int, int] = {}  # thread -> device
        self.capturing: dict[int, list[Any]] = {}
        self.graphs: dict[int, list[Any]] = {}
        self.next_handle = 1000
        kinds = ("HostToDevice", "DeviceToHost", "DeviceToDevice")
        self.cudaMemcpyKind = SimpleNamespace(**{f"cudaMemcpy{k}": k for k in kinds})
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def _answer(self, name: str, *values: Any) -> tuple[Any, ...]:
        self.events.append(name)
        status = self.failing.get(name, 0)
        return (FakeStatus(status), *(values if not status else [None] * len(values)))

    def _handle(self) -> int:
        self.next_handle += 1
        return self.next_handle

    def _allocate(self, name: str, n_bytes: int) -> tuple[Any, ...]:
        buffer = ctypes.create_string_buffer(n_bytes)
        answer = self._answer(name, ctypes.addressof(buffer))
        if not answer[0]:
            self.memory[answer[1]] = buffer
        return answer

    def _free(self, name: str, pointer: int) -> tuple[Any, ...]:
        del self.memory[pointer]  # KeyError: freed twice
        return self._answer(name)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"out of memory" if status == 2 else b"unknown error"

    def cudaSetDevice(self, device: int) -> Any:
        self.devices[threading.get_ident()] = device
        return self._answer("cudaSetDevice")

    def cudaMalloc(self, n_bytes: int) -> Any:
        return self._allocate("cudaMalloc", n_bytes)

    def cudaFree(self, pointer: int) -> Any:
        return self._free("cudaFree", pointer)

    def cudaMallocHost(self, n_bytes: int) -> Any:
        return self._allocate("cudaMallocHost", n_bytes)

    def cudaFreeHost(self, pointer: int) -> Any:
        return self._free("cudaFreeHost", pointer)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        return self._answer("cudaStreamCreateWithFlags", self._handle())

    def cudaStreamSynchronize(self, stream: int) -> Any:
        return self._answer("cudaStreamSynchronize")

    def cudaStreamDestroy(self, stream: int) -> Any:
        return self._answer("cudaStreamDestroy")

    def cudaMemcpyAsync(self, target: int, source: int, n: int, kind: str, stream: int) -> Any:
        ctypes.memmove(target, source, n)
        return self._answer(f"cudaMemcpyAsync {kind}")

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        answer = self._answer("cudaStreamBeginCapture")
        if not answer[0]:
            self.capturing[stream] = []
        return answer

    def cudaStreamEndCapture(self, stream: int) -> Any:
        handle = self._handle()
        self.graphs[handle] = self.capturing.pop(stream)
        return self._answer("cudaStreamEndCapture", handle)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        handle = self._handle()
        self.graphs[handle] = self.graphs[graph]
        return self._answer("cudaGraphInstantiate", handle)

    def cudaGraphDestroy(self, graph: int) -> Any:
        return self._answer("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graph: int) -> Any:
        return self._answer("cudaGraphExecDestroy")

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:
        for kernel in self.graphs[graph]:
            kernel()
        return self._answer("cudaGraphLaunch")


class FakeContext:
    """IExecutionContext."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt, self.addresses = trt, dict[str, int]()

    def __del__(self) -> None:
        self.trt.cuda.events.append("context gone")

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        assert pointer in self.trt.cuda.memory
        self.addresses[name] = pointer
        return name not in self.trt.refused

    def execute_async_v3(self, stream: int) -> bool:
        self.trt.cuda.events.append("execute")
        x, y = self.addresses["x"], self.addresses["y"]
        assert {x, y} <= set(self.trt.cuda.memory)
        memory = self.trt.cuda.memory

        def kernel() -> None:
            doubled = 2 * np.frombuffer(memory[x], "float32")
            ctypes.memmove(y, doubled.astype("float32").tobytes(), 16)

        if stream in self.trt.cuda.capturing:
            if "execute while capturing" in self.trt.refused:
                return False
            self.trt.cuda.capturing[stream].append(kernel)
        else:
            kernel()
        return "execute" not in self.trt.refused


class FakeRuntimeCache:
    """IRuntimeCache. `data`: what it gives; an exception is raised."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt, self.data = trt, b"compiled"

    def deserialize(self, data: bytes) -> bool:
        self.trt.cuda.events.append("cache read")
        return data == b"compiled"

    def serialize(self) -> bytes:
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


class FakeRuntimeConfig:
    cuda_graph_strategy: Any = None
    cache: Any = None

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self.trt)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    """ICudaEngine of SPEC."""

    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt

    def __del__(self) -> None:
        self.trt.cuda.events.append("engine gone")

    def get_tensor_name(self, i: int) -> str:
        return "xy"[i]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name={"x": "INPUT", "y": "OUTPUT"}[name])

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.trt.dtype)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1, 4)

    def create_runtime_config(self) -> FakeRuntimeConfig:
        self.trt.config = FakeRuntimeConfig(self.trt)
        return self.trt.config

    def create_execution_context(self, config: Any = None) -> FakeContext | None:
        self.trt.cuda.events.append("context")
        self.trt.configs.append(config)
        return None if "context" in self.trt.refused else FakeContext(self.trt)


class FakeRefitter:
    """Refitter, and OnnxParserRefitter of one."""

    def __init__(self, made_of: Any, logger: Any) -> None:
        self.made_of, self.logger = made_of, logger

    def refit_from_file(self, path: str) -> bool:
        trt = self.made_of.made_of.trt
        trt.cuda.events.append(f"weights of {path}")
        return "weights" not in trt.refused

    def refit_cuda_engine(self) -> bool:
        self.made_of.trt.cuda.events.append("refit")
        return "refit" not in self.made_of.trt.refused


class FakeTensorRt(ModuleType):
    """The module `tensorrt` or `tensorrt_rtx`. `refused`: names of calls that answer False or None."""

    def __init__(self, name: str, cuda: FakeCudaRuntime) -> None:
        super().__init__(name)
        self.cuda, self.dtype, self.refused = cuda, "FLOAT", set[str]()
        self.config: Any = None
        self.configs: list[Any] = []
        self.runtimes: list[Any] = []
        self.validity, self.diagnostics = "VALID", 0
        trt = self

        class ILogger:
            Severity = SimpleNamespace(ERROR=1)

            def __init__(self) -> None: ...

        class Runtime:
            engine_header_size = 64
            engine_host_code_allowed = False

            def __init__(self, logger: Any) -> None:
                self.logger = logger
                trt.runtimes.append(self)

            def deserialize_cuda_engine(self, data: Any) -> FakeEngine | None:
                trt.cuda.events.append("deserialize")
                if "engine" in trt.refused:
                    self.logger.log(1, "Serialization assertion failed\nin runtime.cpp")
                    self.logger.log(1, "catchCudaError::250: cudaError 35")
                    return None
                assert bytes(data) == b"an engine"
                return FakeEngine(trt)

        if name == "tensorrt_rtx":
            Runtime.get_engine_validity = lambda self, header: (  # type: ignore[attr-defined]
                SimpleNamespace(name=trt.validity),
                trt.diagnostics,
            )
        self.ILogger, self.Runtime = ILogger, Runtime
        self.Refitter = self.OnnxParserRefitter = FakeRefitter
        self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
        self.EngineInvalidityDiagnostics = SimpleNamespace(
            __members__={"VERSION_MISMATCH": 1, "OLD_CUDA_DRIVER": 4}
        )


def install(monkeypatch: pytest.MonkeyPatch, library: str) -> tuple[FakeTensorRt, FakeCudaRuntime]:
    """Put the fakes where the session imports its libraries from."""
    cuda = FakeCudaRuntime()
    trt = FakeTensorRt(library, cuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, library, trt)
    last_error_logger.cache_clear()
    return trt, cuda


X = np.array([[1, 2, 3, 4]], np.float32)
Fakes = tuple[FakeTensorRt, FakeCudaRuntime]


def opened(path: Path, library: str = "tensorrt", **options: Any) -> TensorRtSession:
    return TensorRtSession(path, SPEC, library=library, **options)


def infer(session: TensorRtSession, x: np.ndarray = X) -> np.ndarray:
    return session.infer({"x": x})["y"]
