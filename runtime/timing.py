"""Interleaved timing: every backend is called once per round, so drift of the machine hits all."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata

import psutil

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


def machine() -> dict[str, object]:
    """What a timing must be read with: processor, cores, memory, system."""
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of what makes and runs a bundle."""
    found = {"python": platform.python_version()}
    for package in (
        "save-deploy",
        "torch",
        "onnx",
        "onnxruntime-gpu",
        "onnxruntime",
        "openvino",
        "numpy",
        "segment-anything",
    ):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB.

    Linux's VmHWM begins with the program; ru_maxrss would include what the parent held at the fork.
    """
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
