"""Rounds over contenders: one call each per round in rotating order, never two at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from save_deploy.bundle import Arrays
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime.bench.contender import (
    GEMM,
    GEMM_INT8,
    GEMM_SIDE,
    Contender,
    Outcome,
    Subject,
)
from save_deploy.runtime.bench.worker import work

# A loaded FP32 model takes its weights, most of them packed again, and its libraries.
_RESIDENT_FACTOR, _LIBRARIES_BYTES, _SHARE = 1.6, 6e8, 0.75
_CALLS_PER_LOAD = 2


@dataclass(frozen=True)
class BenchResult:
    """resident: all contenders stayed loaded; else each was loaded anew in every round (memory)."""

    subject: Subject
    outcomes: tuple[Outcome, ...]
    gemm: dict[str, LatencyResult]  # float32, by backend
    gemm_int8: dict[str, LatencyResult]  # empty without INT8 contenders
    overhead_us: dict[str, float]
    resident: bool

    @property
    def gemm_gflops(self) -> float:
        """Rate of the fastest backend's large float32 product: what this machine can do."""
        return max(map(gflops, self.gemm.values()))

    @property
    def floor_ms(self) -> float:
        """The useful multiplications at the measured rate, nothing else."""
        return 2 * self.subject.macs / self.gemm_gflops / 1e6

    @property
    def floor_int8_ms(self) -> float | None:
        """The same at the rate of the fastest 8-bit product, though a part is computed in float; None
        where it was not measured."""
        if not self.gemm_int8:
            return None
        return 2 * self.subject.macs / max(map(gflops, self.gemm_int8.values())) / 1e6

    def floor_of(self, contender: Contender) -> float | None:
        return self.floor_int8_ms if contender.int8 else self.floor_ms


def gflops(gemm: LatencyResult) -> float:
    """Rate of the large product: 1e9 multiplications and additions a second."""
    return 2 * GEMM_SIDE**3 / gemm.p50_ms / 1e6


@dataclass
class _Worker:
    """The parent's side of a contender: its process while loaded, its samples throughout."""

    contender: Contender
    samples_ms: list[float] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    process: Any = None
    pipe: Connection | None = None

    def start(self, subject: Subject, inputs: Arrays, overhead: Path | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=work, args=(other, self.contender, subject, inputs, overhead), daemon=True
        )
        self.process.start()
        other.close()
        report = self._receive("ready")
        if report is not None and not self.report:
            self.report = report
        elif report is not None:
            self.report["peak_mib"] = max(self.report["peak_mib"], report["peak_mib"])

    def run(self) -> None:
        if self.failed or self.pipe is None:
            return
        with contextlib.suppress(BrokenPipeError):  # a dead process is reported by what follows
            self.pipe.send("run")
        ms = self._receive("ms")
        if ms is not None:
            self.samples_ms.append(ms)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = self.pipe = None

    def _receive(self, wanted: str) -> Any:
        assert self.pipe is not None
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(timeout=10)
            code = self.process.exitcode
            why = "killed, out of memory?" if code == -signal.SIGKILL else f"exit code {code}"
            kind, value = "failed", f"its process ended ({why})"
        if kind == wanted:
            return value
        self.failed = value
        self.stop()
        return None


def run_bench(
    subject: Subject,
    contenders: Sequence[Contender],
    inputs: Arrays,
    *,
    rounds: int = 20,
    budget_s: float = 300.0,
    overhead: Path | None = None,
    gemm: Path | None = None,
    gemm_int8: Path | None = None,
    on_step: Callable[[str, int], None] = lambda *_: None,
) -> BenchResult:
    """Time contenders in interleaved rounds: at least 3, then until `rounds` or the time budget.

    Each contender has its own process, so its peak memory is its own and idle ones hold no core.
    When they do not all fit into memory, each is loaded anew in every round and called twice. A
    contender that fails is reported, not fatal. overhead: a graph that computes nothing; gemm: one
    that multiplies by a constant (GEMM_SPEC), timed in every round on every backend as the measure of
    the machine; gemm_int8: the same in 8 bits, for backends with INT8 contenders.
    """
    yardsticks = [_Worker(c) for c in yardsticks_of(contenders, gemm, gemm_int8)]
    others = [_Worker(c) for c in contenders]
    workers = yardsticks + others
    resident = _fits(subject, len(contenders))
    measured: set[str] = set()  # backends whose call overhead is known

    def start(worker: _Worker) -> None:
        backend = worker.contender.backend
        measurable = worker.contender.path and not worker.contender.is_yardstick
        graph = overhead if measurable and backend not in measured else None
        worker.start(subject, inputs, graph)
        if "overhead_us" in worker.report:
            measured.add(backend)

    try:
        if resident:
            for worker in workers:
                on_step(f"loading {worker.contender.name}", 0)
                start(worker)
        started = time.perf_counter()
        for i in range(rounds):
            if i >= 3 and time.perf_counter() - started > budget_s:
                break
            shift = i % len(workers)
            for worker in workers[shift:] + workers[:shift]:
                if worker.failed:
                    continue
                on_step(worker.contender.name, 1)
                if resident:
                    worker.run()
                    continue
                start(worker)
                for _ in range(_CALLS_PER_LOAD):
                    worker.run()
                worker.stop()
    finally:
        for worker in workers:
            worker.stop()
    reference = next((w.report.get("logits") for w in others if w.contender.graph == "eager"), None)
    return BenchResult(
        subject=subject,
        outcomes=tuple(_outcome(w, subject, reference) for w in others),
        gemm=_taken(yardsticks, GEMM),
        gemm_int8=_taken(yardsticks, GEMM_INT8),
        overhead_us={
            w.contender.backend: w.report["overhead_us"]
            for w in others
            if "overhead_us" in w.report
        },
        resident=resident,
    )


def yardsticks_of(
    contenders: Sequence[Contender], gemm: Path | None, gemm_int8: Path | None
) -> list[Contender]:
    """Large products to time beside these: torch's, and each backend's own of these graphs."""
    found = [Contender(GEMM, "torch")]
    for graph, path, int8 in ((GEMM, gemm, False), (GEMM_INT8, gemm_int8, True)):
        backends = dict.fromkeys(c.backend for c in contenders if c.path and (c.int8 or not int8))
        found += [Contender(graph, b, path, int8) for b in backends if path is not None]
    return found


def _taken(yardsticks: list[_Worker], graph: str) -> dict[str, LatencyResult]:
    return {
        w.contender.backend: LatencyResult(tuple(w.samples_ms))
        for w in yardsticks
        if w.samples_ms and w.contender.graph == graph
    }


def _fits(subject: Subject, n: int) -> bool:
    weights = _RESIDENT_FACTOR * 4 * subject.parameters
    each = weights + subject.activation_bytes + _LIBRARIES_BYTES
    return n * each < _SHARE * psutil.virtual_memory().total


def _outcome(worker: _Worker, subject: Subject, reference: NDArray[np.float32] | None) -> Outcome:
    outcome = Outcome(worker.contender, failed=worker.failed)
    if worker.failed:
        return outcome
    report, error = worker.report, None
    if reference is not None and worker.contender.graph != "eager":
        difference = np.abs(report["logits"] - reference).max()
        error = float(difference / max(1e-30, reference.max() - reference.min()))
    return replace(
        outcome,
        latency=LatencyResult(tuple(worker.samples_ms), subject.batch),
        load_s=report["load_s"],
        first_mask_s=report["first_mask_s"],
        peak_mib=report["peak_mib"],
        max_rel_err=error,
    )
