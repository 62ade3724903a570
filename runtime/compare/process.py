"""A model in a separate process: start, peak memory, and calls timed on request."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Arrays
from save_deploy.children import safe_path
from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Frame
from save_deploy.errors import SaveDeployError
from save_deploy.machine import peak_memory_mib
from save_deploy.runtime.compare.entries import Entry
from save_deploy.runtime.session import Session

Answer = NDArray[Any]
Call = Callable[[], Answer]
LONG_CALL_S, SHORT_CALL_S = 2.0, 0.25


class Opener(Protocol):
    """A picklable function object that opens a model in the child process."""

    def __call__(self) -> Call: ...


@dataclass(frozen=True)
class ModelCall:
    """Calls the model graph of an entry with fixed inputs."""

    entry: Entry
    inputs: Arrays

    def __call__(self) -> Call:
        return _Inference(self.entry.open_model(), self.inputs)


@dataclass(frozen=True)
class _Inference:
    session: Session
    inputs: Arrays

    def __call__(self) -> Answer:
        return self.session.infer(self.inputs)["mask_logits"]

    @property
    def device_ms(self) -> float | None:
        """Time of the last call between CUDA events, None when the session does not measure it."""
        return getattr(self.session, "device_ms", None)


@dataclass(frozen=True)
class FrameCall:
    """Calls the pipeline of an entry with a frame and its audio."""

    entry: Entry
    frame: Frame
    waveform: Waveform

    def __call__(self) -> Call:
        pipeline = self.entry.open()
        return lambda: pipeline(self.frame, self.waveform)


@dataclass(frozen=True)
class Started:
    """Start of a process.

    load_s, first_s: seconds from its start (including libraries) to the open model and to its first
        output.
    peak_mib: largest resident size on the host, including libraries.
    """

    load_s: float
    first_s: float
    peak_mib: float
    answer: Answer


@dataclass
class OwnProcess:
    """Parent's view of the process, its samples and its failure.

    samples_ms: times from host memory to host memory.
    device_ms: times of the same calls between CUDA events, empty when not measured.
    """

    name: str
    open: Opener
    samples_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    started: Started | None = None
    failed: str = ""
    _process: Any = None
    _pipe: Connection | None = None

    def start(self) -> None:
        """Open the model and call it once or twice.

        After a restart the first times and the larger peak are kept.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, self.open), daemon=True)
        with safe_path():
            self._process.start()
        other.close()
        found: Started | None = self._receive("ready")
        if found is not None and self.started is not None:
            peak = max(self.started.peak_mib, found.peak_mib)
            found = Started(self.started.load_s, self.started.first_s, peak, self.started.answer)
        self.started = found or self.started

    def run(self) -> None:
        """Time one call."""
        if self.failed or self._pipe is None:
            return
        with contextlib.suppress(BrokenPipeError):  # a dead process is reported by what follows
            self._pipe.send("run")
        taken = self._receive("ms")
        if taken is None:
            return
        host, device = taken
        self.samples_ms.append(host)
        if device is not None:
            self.device_ms.append(device)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _receive(self, wanted: str) -> Any:
        assert self._pipe is not None
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(timeout=10)
            code = self._process.exitcode
            why = "killed, out of memory?" if code == -signal.SIGKILL else f"exit code {code}"
            kind, value = "failed", f"its process ended ({why})"
        if kind == wanted:
            return value
        self.failed = value
        self.stop()
        return None


def measure_memory(entry: Entry, frame: Frame, waveform: Waveform) -> float | None:
    """Return the peak memory in MiB of an entry in a separate process, None when it failed."""
    process = OwnProcess(entry.name, FrameCall(entry, frame, waveform))
    try:
        process.start()
    finally:
        process.stop()
    return None if process.started is None else process.started.peak_mib


def _work(pipe: Connection, open_model: Opener) -> None:
    """Messages out: ("ready", Started), ("ms", (on the host, on the device or None)),
    ("failed", why). In: "run"."""
    begun = time.perf_counter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    try:
        call = open_model()
        load_s = time.perf_counter() - begun
        answer = np.asarray(call())
        first_s = time.perf_counter() - begun
        short = False
        if first_s - load_s < LONG_CALL_S:  # else the first call has warmed everything
            begin = time.perf_counter()
            call()
            short = time.perf_counter() - begin < SHORT_CALL_S
        pipe.send(("ready", Started(load_s, first_s, peak_memory_mib(), answer)))
        while pipe.recv() == "run":
            if short:  # the others filled the caches: an application finds its own data there
                call()
            begin = time.perf_counter()
            call()
            ms = (time.perf_counter() - begin) * 1000
            pipe.send(("ms", (ms, getattr(call, "device_ms", None))))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:  # whatever a backend raises is this entry's result
        text = str(error)
        if not isinstance(error, SaveDeployError):
            text = f"{type(error).__name__}: {error}"
        pipe.send(("failed", " ".join(text.split())[:300]))
    finally:
        pipe.close()
        os._exit(0)  # gigabytes of a framework need no orderly teardown
