"""Interleaved timing: every backend is called once per round, so drift of the machine hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from save_deploy.metrics.latency import LatencyResult


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 2,
    budget_s: float = 20.0,
    batch: int = 1,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, LatencyResult]:
    """Time each call once per round, at least 3 rounds, then until `rounds` or the time budget.

    The order rotates from round to round. Returns raw samples by name; `batch` is frames per call.
    """
    for _ in range(warmup):
        for call in calls.values():
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, started = list(calls), time.perf_counter()
    for i in range(rounds):
        if i >= 3 and time.perf_counter() - started > budget_s:
            break
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.perf_counter()
            calls[name]()
            samples[name].append((time.perf_counter() - begin) * 1000)
        on_round()
    return {name: LatencyResult(tuple(values), batch) for name, values in samples.items()}
