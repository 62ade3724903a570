"""What every session shares: the interface, the output buffers, the number of threads."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, Protocol, Self

import numpy as np
import psutil

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError
from save_deploy.machine import allowed_cores


class Session(Protocol):
    """Context manager; `infer` maps named arrays to named arrays and checks them first."""

    backend: str
    spec: GraphSpec

    def infer(self, inputs: Arrays) -> Arrays: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...


class BufferedSession(ABC):
    """Outputs are computed into buffers allocated once and copied out once, so results stay valid.

    infer may be called from several threads; calls run one after the other.
    """

    backend = ""

    def __init__(self, spec: GraphSpec, threads: int) -> None:
        self.spec, self.threads = spec, threads
        self.buffers: Arrays = {o.name: np.empty(o.shape, o.dtype) for o in spec.outputs}
        self._lock = threading.Lock()
        self._is_open = True

    def infer(self, inputs: Arrays) -> Arrays:
        """Named arrays as in the spec, any memory layout -> named arrays of the caller's own."""
        self.spec.check_inputs(inputs)
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        with self._lock:
            if not self._is_open:
                raise BackendError("session is closed", hint="open the bundle again")
            self._run(inputs)
            return {name: buffer.copy() for name, buffer in self.buffers.items()}

    @abstractmethod
    def _run(self, inputs: Arrays) -> None:
        """Compute into self.buffers."""

    @abstractmethod
    def _release(self) -> None:
        """Drop the backend's objects."""

    def close(self) -> None:
        with self._lock:
            self._is_open = False
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def as_batch(array: np.ndarray) -> np.ndarray:
    """(...) -> (1,...), contiguous."""
    return np.ascontiguousarray(array[None])


def default_threads() -> int:
    """Physical cores this process may use: hyper-threads slow matrix products down."""
    allowed = allowed_cores()
    return min(allowed, psutil.cpu_count(logical=False) or allowed)
