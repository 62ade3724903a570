"""Interleaved timing: every round calls each entry once in rotating order, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from save_deploy.bundle import Arrays
from save_deploy.metrics.disturbance import Disturbance
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime.bench.entries import Subject, graph_entry, is_int8
from save_deploy.runtime.bench.yardsticks import Gemm, Yardsticks, gflops
from save_deploy.runtime.compare.entries import Entry
from save_deploy.runtime.compare.others import Watch
from save_deploy.runtime.compare.process import ModelCall, OwnProcess
from save_deploy.runtime.eager_mode import HALVES

# A loaded FP32 model takes its weights, most of them packed again, and its libraries.
_RESIDENT_FACTOR, _LIBRARIES_BYTES, _SHARE = 1.6, 6e8, 0.75
_CALLS_PER_LOAD = 2
_OVERHEAD_CALLS = 200

OnStep = Callable[[str, int], None]


@dataclass(frozen=True)
class Outcome:
    """Result of one entry.

    first_mask_s: seconds from the start of its process (including libraries) to the first mask.
    max_rel_err: largest logit difference over eager's logit range, infinite for logits that are not
        finite.
    device_ms: median between CUDA events.
    failed: why there are no samples, "" for success.
    """

    entry: Entry
    latency: LatencyResult | None = None
    load_s: float = 0.0
    first_mask_s: float = 0.0
    peak_mib: float = 0.0
    max_rel_err: float | None = None
    failed: str = ""
    device_ms: float | None = None

    @property
    def device(self) -> str:
        return self.entry.device


@dataclass(frozen=True)
class BenchResult:
    """Result of a benchmark.

    gemm, gemm_int8: timings of the large products by backend.
    resident: True when all entries stayed loaded; otherwise each was loaded again in every round.
    others: what other processes did to the rounds.
    """

    subject: Subject
    outcomes: tuple[Outcome, ...]
    gemm: dict[str, LatencyResult]
    gemm_int8: dict[str, LatencyResult]
    overhead_us: dict[str, float]
    resident: bool
    gemm_device: str = "cpu"
    others: Disturbance | None = None

    @property
    def withheld(self) -> str:
        """Why the run has no ratios, "" when it has."""
        return self.others.reason if self.others else ""

    @property
    def gemm_gflops(self) -> float:
        """Rate of the fastest backend's large float32 product: the limit of this machine."""
        return max(map(gflops, self.gemm.values()))

    @property
    def floor_ms(self) -> float:
        """Lower bound: time of the useful multiplications at the measured rate."""
        return 2 * self.subject.macs / self.gemm_gflops / 1e6

    @property
    def floor_int8_ms(self) -> float | None:
        """Lower bound at the rate of the fastest INT8 product, None when it was not measured.

        It is optimistic, because a part of the model is computed in float.
        """
        if not self.gemm_int8:
            return None
        return 2 * self.subject.macs / max(map(gflops, self.gemm_int8.values())) / 1e6

    def floor_of(self, entry: Entry) -> float | None:
        """Lower bound of an entry; None when the rate of its type or device was not measured."""
        if entry.device != self.gemm_device or entry.precision in HALVES:
            return None
        return self.floor_int8_ms if is_int8(entry) else self.floor_ms


def run_bench(
    subject: Subject,
    entries: Sequence[Entry],
    inputs: Arrays,
    *,
    yardsticks: Yardsticks = Yardsticks(),  # noqa: B008 (frozen)
    rounds: int = 20,
    budget_s: float = 300.0,
    on_step: OnStep = lambda *_: None,
) -> BenchResult:
    """Time entries in interleaved rounds: at least 3, then until `rounds` or the time budget.

    Each entry has its own process, so that its peak memory is measured alone and idle entries use
    no core. When not all fit into memory, each is loaded again in every round and called twice. A
    failing entry is reported and does not stop the run. The yardsticks are timed in every round
    like entries. Rounds that other processes disturbed are dropped and repeated, up to as many again
    within the budget.
    """
    gemms = {gemm: OwnProcess(gemm.name, gemm) for gemm in yardsticks.gemms(entries)}
    ours = [OwnProcess(entry.name, ModelCall(entry, inputs)) for entry in entries]
    resident = _fits(subject, len(entries))
    overhead = _overhead_us(subject, entries, inputs, yardsticks)
    watch = Watch(subject.threads)
    _run_rounds(
        [*gemms.values(), *ours], watch, resident=resident, rounds=rounds, budget_s=budget_s,
        on_step=on_step,
    )  # fmt: skip
    others = watch.result()
    pairs = list(zip(entries, ours, strict=True))
    reference = next((p.started.answer for e, p in pairs if e.form == "eager" and p.started), None)
    return BenchResult(
        subject=subject,
        outcomes=tuple(_outcome(e, p, subject, reference, others) for e, p in pairs),
        gemm=_taken(gemms, int8=False),
        gemm_int8=_taken(gemms, int8=True),
        overhead_us=overhead,
        resident=resident,
        gemm_device=next((g.device_text for g in gemms if g.backend == "torch"), "cpu"),
        others=others,
    )


def _run_rounds(
    processes: list[OwnProcess], watch: Watch, *, resident: bool, rounds: int, budget_s: float,
    on_step: OnStep,
) -> None:  # fmt: skip
    try:
        if resident:
            for process in processes:
                on_step(f"loading {process.name}", 0)
                process.start()
        started = time.perf_counter()
        for i in watch.rounds(rounds):
            if i >= 3 and time.perf_counter() - started > budget_s:
                break
            shift = i % len(processes)
            for process in processes[shift:] + processes[:shift]:
                if process.failed:
                    continue
                on_step(process.name, 1)
                if resident:
                    process.run()
                    continue
                process.start()
                for _ in range(_CALLS_PER_LOAD):
                    process.run()
                process.stop()
            watch.round_done()
    finally:
        for process in processes:
            process.stop()
    calls = 1 if resident else _CALLS_PER_LOAD
    for process in processes:
        process.samples_ms = list(watch.pick(process.samples_ms, calls))
        process.device_ms = list(watch.pick(process.device_ms, calls))


def _overhead_us(
    subject: Subject, entries: Sequence[Entry], inputs: Arrays, yardsticks: Yardsticks
) -> dict[str, float]:
    """Return the median time per backend of a graph with the same interface and no computation."""
    if yardsticks.empty is None:
        return {}
    found = {}
    for backend in dict.fromkeys(e.backend for e in entries if e.graph):
        entry = graph_entry("empty", backend, yardsticks.empty, subject)
        process = OwnProcess(entry.name, ModelCall(entry, inputs))
        try:
            process.start()
            for _ in range(_OVERHEAD_CALLS):
                process.run()
        finally:
            process.stop()
        if process.samples_ms:
            found[backend] = float(np.median(process.samples_ms) * 1000)
    return found


def _taken(gemms: dict[Gemm, OwnProcess], *, int8: bool) -> dict[str, LatencyResult]:
    return {
        gemm.backend: LatencyResult(tuple(process.samples_ms))
        for gemm, process in gemms.items()
        if process.samples_ms and gemm.int8 == int8
    }


def _fits(subject: Subject, n: int) -> bool:
    weights = _RESIDENT_FACTOR * subject.source.n_bytes
    each = weights + subject.activation_bytes + _LIBRARIES_BYTES
    return n * each < _SHARE * psutil.virtual_memory().total


def _outcome(
    entry: Entry, process: OwnProcess, subject: Subject, reference: NDArray[np.float32] | None,
    others: Disturbance,
) -> Outcome:  # fmt: skip
    started, error = process.started, None
    if process.failed or started is None:
        return Outcome(entry, failed=process.failed)
    if reference is not None and entry.form != "eager":
        difference = np.abs(started.answer - reference).max()
        error = float(difference / max(1e-30, reference.max() - reference.min()))
        error = error if np.isfinite(error) else np.inf
    return Outcome(
        entry,
        latency=LatencyResult(tuple(process.samples_ms), subject.batch, others),
        load_s=started.load_s,
        first_mask_s=started.first_s,
        peak_mib=started.peak_mib,
        max_rel_err=error,
        device_ms=float(np.median(process.device_ms)) if process.device_ms else None,
    )
