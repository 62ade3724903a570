"""Cache of built engines, keyed by graph, options, library, version and targets.

Each engine has a folder in the cache of compiled models with `engine` and `entry.json`, and a lock
file beside it. When two processes request the same engine, one builds and the other waits. The
system releases the lock of a dead process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from save_deploy.bundle import sha256_of
from save_deploy.errors import ExportError
from save_deploy.export.engine.build import BuildResult
from save_deploy.export.engine.graph import content_hash
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.receipt import Receipt
from save_deploy.files import cache_root
from save_deploy.partials import dead_partials, partial_folder
from save_deploy.progress import raise_if_interrupted

_POLL_S = 0.1
# Increment when builds or receipts change: older entries are then built again.
# 2: no TF32; MatMuls without a named kernel are counted separately
_RECEIPT_VERSION = 2


@dataclass(frozen=True)
class Cached:
    """One entry of the cache.

    damaged: its description cannot be read.
    unfinished: left by a killed build.
    """

    key: str
    library: str
    targets: tuple[str, ...]
    size: int
    age_days: float
    damaged: bool
    unfinished: bool = False


def folder() -> Path:
    """Return the folder of the cache."""
    return cache_root() / "engines"


def usable() -> bool:
    """Return False when the cache is not writable, as in a read-only container.

    Engines are then built every time.
    """
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder(), os.W_OK)


def key_of(onnx: Path, options: BuildOptions, module: str, version: str, gpu: str = "") -> str:
    """Return the cache key, 32 hex digits, of all inputs that determine the engine.

    options: resolved by BuildOptions.fitted.
    gpu: GPU and driver that full TensorRT builds on, "" for TensorRT-RTX.
    """
    values = {**options.to_dict(), "timing_cache": None}  # affects build time, not the engine
    inputs = [_RECEIPT_VERSION, content_hash(onnx), values, module, version, gpu]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def lookup(key: str) -> BuildResult | None:
    """Return the cached engine of a key, or None when it is missing or damaged."""
    place = folder() / key
    try:
        values = json.loads((place / "entry.json").read_text())
        if sha256_of(place / "engine") != values["sha256"]:
            return None
        return BuildResult(
            engine=place / "engine",
            library=values["library"],
            version=values["version"],
            targets=tuple(values["targets"]),
            device=values["device"],
            receipt=Receipt.from_dict(values["receipt"]),
            kernels=(),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def get_or_build(
    key: str, build: Callable[[Path], BuildResult], out: Path, *, on_line: Callable[[str], None]
) -> tuple[BuildResult, bool]:
    """Copy the engine of `key` to the file `out`; build and cache it when there is none.

    build: called with the path of the engine to write.
    Returns the result, and True when the engine came from the cache. A damaged entry, or one that
    another process removes meanwhile, is built again.
    """
    place = folder() / key
    with _locked(key, on_line):
        found = lookup(key)
        if found is not None and _copied(found.engine, out):
            on_line(f"taken from the cache ({key[:12]})")
            return replace(found, engine=out), True
        if place.exists():
            on_line(f"cached engine {key[:12]} is damaged: building again")
            shutil.rmtree(place)
        with partial_folder(place) as made:
            result = build(made / "engine")
            (made / "entry.json").write_text(json.dumps(_described(result, made / "engine")))
            shutil.copyfile(made / "engine", out)  # before another process can remove the entry
            raise_if_interrupted()
            os.replace(made, place)
        return replace(result, engine=out), False


def _copied(engine: Path, out: Path) -> bool:
    """Copy a cached engine.

    Returns False when another process removed it without taking the lock.
    """
    try:
        shutil.copyfile(engine, out)
    except FileNotFoundError:
        return False
    return True


def entries() -> list[Cached]:
    """Return all entries of the cache, newest first."""
    found = []
    for place in folder().glob("[0-9a-f]*"):
        if not place.is_dir():
            continue
        size, age = _size_and_age(place)
        try:
            values = json.loads((place / "entry.json").read_text())
            library = f"{values['library']} {values['version']}"
            found.append(Cached(place.name, library, tuple(values["targets"]), size, age, False))
        except (OSError, KeyError, TypeError, ValueError, RecursionError):
            found.append(Cached(place.name, "?", (), size, age, True))
    return sorted(found, key=lambda e: e.age_days)


def unfinished() -> list[Cached]:
    """Return the partial folders of killed builds."""
    return [
        Cached(key, "?", (), *_size_and_age(place), damaged=True, unfinished=True)
        for place, key, _ in dead_partials(folder())
    ]


def remove(prefix: str = "", *, older_than_days: float | None = None) -> list[Cached]:
    """Delete old entries whose key starts with `prefix` and return the deleted ones.

    older_than_days None: entries of any age. Partial folders of killed builds are deleted at any
        age. Entries that are being built are kept. Raises ExportError when no entry has the prefix.
    """
    chosen = [e for e in (*unfinished(), *entries()) if e.key.startswith(prefix)]
    if prefix and not chosen:
        raise ExportError("no cached engine has this key", got=prefix,
                          expected="the start of a key", hint="save-deploy cache ls")  # fmt: skip
    gone = []
    for entry in chosen:
        if entry.unfinished:
            with partial_folder(
                folder() / entry.key
            ):  # partial_folder removes the partial folders of dead processes
                gone.append(entry)
            continue
        if older_than_days is not None and entry.age_days < older_than_days:
            continue
        with contextlib.suppress(BlockingIOError), _locked(entry.key, None):
            shutil.rmtree(folder() / entry.key, ignore_errors=True)
            gone.append(entry)
    return gone


def _size_and_age(place: Path) -> tuple[int, float]:
    """Return size in bytes and age in days of a folder; another process may be deleting it."""
    size, changed = 0, time.time()
    with contextlib.suppress(OSError):
        changed = place.stat().st_mtime
        size = sum(f.stat().st_size for f in place.iterdir())
    return size, (time.time() - changed) / 86400


@contextlib.contextmanager
def _locked(key: str, on_line: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lock of a key. With on_line None, raise BlockingIOError instead of waiting."""
    path = folder() / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if on_line is None:
                    raise
                if not said:
                    on_line("waiting: another process is building this engine")
                said = True
                raise_if_interrupted()
                time.sleep(_POLL_S)
        yield


def _described(result: BuildResult, engine: Path) -> dict[str, Any]:
    return {
        "sha256": sha256_of(engine),
        "library": result.library,
        "version": result.version,
        "targets": list(result.targets),
        "device": result.device,
        "receipt": result.receipt.to_dict(),
    }
