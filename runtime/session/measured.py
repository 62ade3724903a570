"""The CPU backend that save-compare measured to be faster for a model, kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from save_deploy.files import cache_folder, cache_root
from save_deploy.machine import cpu_name, versions
from save_deploy.metrics.latency import LatencyResult, speedup_range
from save_deploy.runtime.session.base import default_threads
from save_deploy.runtime.session.choose import Choice
from save_deploy.runtime.session.compiled import keep, read_kept
from save_deploy.runtime.session.open import CPU_BACKENDS, available_backends

MEASURED = "measured by save-compare"
_FOLDER = "faster"


def keep_faster(model: str, threads: int | None, taken: Mapping[str, LatencyResult]) -> str | None:
    """Keep which CPU backend is faster and return it; None when the timing does not tell.

    model: hash of the graph and its weights. threads: of the timing; None for all cores.
    taken: results of one interleaved timing by backend. It tells nothing unless both CPU backends are
        in it, no other process disturbed it, and the quartiles of their ratio are on one side of 1.
    """
    ours = [taken[name] for name in CPU_BACKENDS if name in taken]
    if len(ours) < len(CPU_BACKENDS):
        return None
    if any(r.others is None or r.others.unknown or r.withheld for r in ours):
        return None
    low, high = speedup_range(*ours)  # of the second over the first
    faster = CPU_BACKENDS[1] if low > 1 else CPU_BACKENDS[0] if high < 1 else None
    place = measurement_file(_FOLDER, model, threads or default_threads())
    # an earlier choice that this timing does not confirm is forgotten
    if place is None or not keep(place, json.dumps({"backend": faster}).encode()):
        return None
    return faster


def faster_backend(model: str, threads: int | None) -> str | None:
    """Return the kept choice for a model on this CPU with these libraries, None without one."""
    if not (cache_root() / _FOLDER).is_dir():  # nothing was ever measured: a start stays short
        return None
    place = measurement_file(_FOLDER, model, threads or default_threads())
    content = None if place is None else read_kept(place)
    if content is None:
        return None
    try:
        found = json.loads(bytes(content))["backend"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(found) if found in available_backends() else None


def measured_choice(choice: Choice, model: str, threads: int | None) -> Choice:
    """Return the kept choice where `choice` is auto, else `choice`."""
    faster = faster_backend(model, threads) if choice.backend == "auto" else None
    return replace(choice, backend=faster, why=MEASURED) if faster else choice


def measurement_file(kind: str, *of: object) -> Path | None:
    """Return the cache file of a measurement on this CPU with these libraries, None without a cache.

    kind: folder of the cache. of: what was measured, as JSON values.
    """
    folder = cache_folder(kind)
    if folder is None:
        return None
    key = json.dumps([*of, cpu_name(), versions()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
