"""Common parts of all sessions: interface, output buffers, number of threads."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import psutil

from save_deploy.bundle import Arrays, GraphSpec, TensorSpec
from save_deploy.errors import BackendError, BundleError, SaveDeployError
from save_deploy.machine import allowed_cores


class Session(Protocol):
    """Context manager whose `infer` checks named input arrays and returns named output arrays."""

    backend: str
    spec: GraphSpec

    def infer(self, inputs: Arrays) -> Arrays: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...


@dataclass(frozen=True)
class Port:
    """An input or output of a backend.

    dtype: numpy dtype, or the backend's own name of a type that numpy lacks.
    shape: None for dimensions that are not fixed, or for an unknown rank.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def fits(self, spec: TensorSpec) -> bool:
        shape = spec.shape if self.shape is None else self.shape
        return self.dtype == spec.dtype and len(shape) == len(spec.shape) and all(
            side in (None, wanted) for side, wanted in zip(shape, spec.shape, strict=True)
        )  # fmt: skip


def require_interface(
    file: str, spec: GraphSpec, inputs: Iterable[Port], outputs: Iterable[Port]
) -> None:
    """Raise BundleError unless a graph has exactly the inputs and outputs of the spec."""
    for kind, found, wanted in (
        ("inputs", tuple(inputs), spec.inputs),
        ("outputs", tuple(outputs), spec.outputs),
    ):
        ports = {port.name: port for port in found}
        fits = len(found) == len(wanted) and all(
            t.name in ports and ports[t.name].fits(t) for t in wanted
        )
        if not fits:
            raise mismatch(
                f"{file} has other {kind} than the manifest",
                got=", ".join(f"{p.name} {p.dtype} {p.shape}" for p in found)[:300] or "none",
                expected=", ".join(f"{t.name} {t.dtype} {t.shape}" for t in wanted),
            )


def mismatch(what: str, *, got: str, expected: str) -> BundleError:
    return BundleError(
        what, got=got, expected=expected, hint="copy the bundle again, or export it again"
    )


class BufferedSession(ABC):
    """Session with preallocated output buffers that are copied once, so results stay valid.

    infer may be called from several threads; the calls are serialized.
    """

    backend = ""

    def __init__(self, spec: GraphSpec, threads: int) -> None:
        self.spec, self.threads = spec, threads
        self.buffers: Arrays = {}
        self._lock = threading.Lock()
        self._is_open = True

    def infer(self, inputs: Arrays) -> Arrays:
        """Run named arrays of the spec, in any memory layout; return new named arrays."""
        self.spec.check_inputs(inputs)
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        with self._lock:
            if not self._is_open:
                raise BackendError("session is closed", hint="open the bundle again")
            self._guarded(lambda: self._run(inputs))
            return {name: buffer.copy() for name, buffer in self.buffers.items()}

    def _open_graph(self, file: str, inputs: Iterable[Port], outputs: Iterable[Port]) -> None:
        """Compare the graph with the spec, then allocate the buffers."""
        require_interface(file, self.spec, inputs, outputs)
        self._allocate()

    def _allocate(self) -> None:
        self.buffers = {o.name: np.empty(o.shape, o.dtype) for o in self.spec.outputs}
        self._bind()

    def twin(self) -> Self:
        """Return a second session on the same compiled graph, whose calls run beside those of this
        one. It has its own buffers and is closed for itself."""
        other = copy.copy(self)
        other._lock = threading.Lock()
        other._allocate()
        return other

    def _guarded(self, run: Callable[[], None]) -> None:
        """Run, and convert the backend's exceptions.

        They become a BundleError when the graph returned other shapes than the spec, else a
        BackendError.
        """
        try:
            run()
        except (SaveDeployError, MemoryError):
            raise
        except Exception as error:  # backends share no base class of their exceptions
            text = " ".join(str(error).split())[:300]
            if "shape" in text.lower():
                wanted = ", ".join(f"{o.name} {o.dtype} {o.shape}" for o in self.spec.outputs)
                what = "the graph gives other outputs than the manifest says"
                raise mismatch(what, got=text, expected=wanted) from error
            raise BackendError(
                f"{self.backend} failed", got=text, hint="save-doctor BUNDLE"
            ) from error

    @abstractmethod
    def _bind(self) -> None:
        """Make what a call needs besides the compiled graph, for self.buffers."""

    @abstractmethod
    def _run(self, inputs: Arrays) -> None:
        """Compute into self.buffers."""

    @abstractmethod
    def _release(self) -> None:
        """Release the backend's objects."""

    def close(self) -> None:
        with self._lock:
            self._is_open = False
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class LazySession:
    """Session that its first call opens, for a graph that may never be needed.

    infer and twins may be used from several threads. Calls raise the errors of `opener` as well.
    """

    def __init__(self, backend: str, spec: GraphSpec, opener: Callable[[], Session]) -> None:
        self.backend, self.spec, self._opener = backend, spec, opener
        self._session: Session | None = None
        self._lock = threading.Lock()

    def _opened(self) -> Session:
        with self._lock:
            if self._session is None:
                self._session = self._opener()
            return self._session

    def infer(self, inputs: Arrays) -> Arrays:
        return self._opened().infer(inputs)

    def twin(self) -> Self:
        """Return a session on the same compiled graph, which is opened for all twins together."""
        return type(self)(self.backend, self.spec, lambda: twin_of(self._opened()))

    def close(self) -> None:
        with self._lock:
            if self._session is not None:
                self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def twin_of(session: Session) -> Session:
    """Return session.twin(). Raises BackendError for a backend without twins."""
    if not isinstance(session, (BufferedSession, LazySession)):
        raise BackendError(
            "no twin of this session", got=session.backend, expected="onnxruntime or openvino"
        )
    return session.twin()


def as_batch(array: np.ndarray) -> np.ndarray:
    """Add a batch dimension: (...) -> (1,...), contiguous."""
    return np.ascontiguousarray(array[None])


def default_threads() -> int:
    """Return the physical cores this process may use. Hyper-threads would slow down MatMuls."""
    allowed = allowed_cores()
    return min(allowed, psutil.cpu_count(logical=False) or allowed)
