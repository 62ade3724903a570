"""CPU time that other processes use while something is timed.

Two threads that wait for each other lose twice when another process takes one core: the eager model
more than others, because its threads spin at every barrier. Rounds of a timing in which that happened
are dropped and repeated.

Of a span of rounds, what others used is the time in which the allowed cores were not idle, less that
of this process and its descendants. Time that a hypervisor took counts as that of others. The system
counts in ticks of 10 ms, therefore short rounds are judged together.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil

from save_deploy.machine import allowed_cores
from save_deploy.metrics.disturbance import Disturbance
from save_deploy.runtime.session import default_threads

SHARE = 0.05  # of the cores of the timed threads: what others may use beside them
SPAN_S, SHORTEST_S = 1.0, 0.2
_TICK_S = 0.02  # error of a difference of two counters, per core
_KINDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
NO_TIMES = "no CPU times of the whole machine here"
TOO_SHORT = f"all rounds together took less than {SHORTEST_S:g} s"
T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """Seconds. idle_s, total_s: summed over the allowed cores. own_s: CPU time of this process tree."""

    at_s: float
    idle_s: float
    total_s: float
    own_s: float


def read_cpu() -> Reading | None:
    """Return the CPU times of now, None where the system does not tell them (other than Linux)."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        times = psutil.cpu_times(percpu=True)
        cores = [times[i] for i in os.sched_getaffinity(0)]
        children = psutil.Process().children(recursive=True)
    except (OSError, IndexError, ValueError, psutil.Error):
        return None
    own = 0.0
    for child in children:
        with contextlib.suppress(psutil.Error):  # it has just ended
            own += sum(child.cpu_times()[:4])  # with its own children that ended
    ended = os.times()
    own += time.process_time() + ended.children_user + ended.children_system
    idle = sum(core.idle + core.iowait for core in cores)
    total = sum(getattr(core, kind, 0.0) for core in cores for kind in _KINDS)
    return Reading(time.perf_counter(), idle, total, own)


class Watch:
    """Judges the rounds of one timing.

    threads: of the timed models; None for all physical cores. Cores that they leave free may be used
    by others.
    """

    def __init__(
        self, threads: int | None = None, *, read: Callable[[], Reading | None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._read, self._clock = read or read_cpu, clock
        self._cores = allowed_cores()
        hyper = (psutil.cpu_count() or 1) / (psutil.cpu_count(logical=False) or 1)
        physical = self._cores / max(1.0, hyper)
        wanted = min(threads or default_threads(), physical)
        self._limit = SHARE * wanted + physical - wanted
        self._used: list[float | None] = []  # cores of others in each judged round, None: unknown
        self._disturbed: list[bool] = []
        self._waiting = self._asked = 0
        self._short = True
        self._began = self._read()

    def rounds(self, wanted: int) -> Iterator[int]:
        """Yield the numbers of rounds to time until so many are undisturbed, at most twice as many.

        The caller may end earlier. Call round_done() after each.
        """
        self._judge()
        self._asked += wanted
        self._began = self._read()  # not when something was loaded
        before, done, missing = self._clean(), 0, wanted
        while missing > 0 and done < 2 * wanted:
            for _ in range(min(missing, 2 * wanted - done)):
                yield done
                done += 1
            missing = wanted - (self._clean() - before)

    def round_done(self) -> None:
        """Call after every round."""
        self._waiting += 1
        if self._began is None or self._clock() - self._began.at_s >= SPAN_S:
            self._judge()

    def pick(self, values: Sequence[T], calls: int = 1) -> tuple[T, ...]:
        """Return the values of undisturbed rounds, or all when too few are left.

        values: in order, `calls` of each round.
        """
        if self.result().withheld:
            return tuple(values)
        dropped = {i for i, disturbed in enumerate(self._disturbed) if disturbed}
        return tuple(value for i, value in enumerate(values) if i // calls not in dropped)

    def result(self) -> Disturbance:
        self._judge()
        known = [used for used in self._used if used is not None]
        busy = [
            used
            for used, disturbed in zip(self._used, self._disturbed, strict=True)
            if disturbed and used is not None
        ]
        unknown = "" if known else TOO_SHORT if self._short else NO_TIMES
        return Disturbance(
            rounds=len(self._disturbed),
            asked=self._asked,
            disturbed=len(busy),
            cores=sum(busy) / len(busy) if busy else 0.0,
            of=self._cores,
            unknown=unknown,
        )

    def _clean(self) -> int:
        self._judge()
        return self._disturbed.count(False)

    def _judge(self) -> None:
        """Judge the waiting rounds together. A span too short takes the verdict of the one before."""
        if not self._waiting:
            return
        before, now = self._began, self._read()
        used, disturbed = None, False
        if before is None or now is None:
            self._short = False
        elif (wall := now.at_s - before.at_s) < SHORTEST_S:
            used = self._used[-1] if self._used else None
            disturbed = bool(self._disturbed) and self._disturbed[-1]
        elif not 0.5 < (now.total_s - before.total_s) / (wall * self._cores) < 1.5:
            self._short = False  # counters that stand still, or of another set of cores
        else:
            busy_s = wall * self._cores - (now.idle_s - before.idle_s)
            others_s = max(0.0, busy_s - (now.own_s - before.own_s))
            used = others_s / wall
            disturbed = others_s > self._limit * wall + _TICK_S * self._cores
        self._used += [used] * self._waiting
        self._disturbed += [disturbed] * self._waiting
        self._waiting, self._began = 0, now
