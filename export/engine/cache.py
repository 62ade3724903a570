"""Cache of built engines: the same graph, options, library and targets build once.

A folder per engine under the cache of compiled models: `engine`, `entry.json`, and a lock file beside
it. If two processes ask for one engine, one builds and the other waits; the lock of a process that
died is free.
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
# Raise it when builds or receipts change: older entries are then built again.
# 2: no TF32; MatMuls without a named kernel are counted apart
_RECEIPT_VERSION = 2


@dataclass(frozen=True)
class Cached:
    """One entry of the cache. damaged: its description cannot be read; unfinished: left by a killed
    build."""

    key: str
    library: str
    targets: tuple[str, ...]
    size: int
    age_days: float
    damaged: bool
    unfinished: bool = False


def folder() -> Path:
    return cache_root() / "engines"


def usable() -> bool:
    """False where nothing may be written (read-only containers): engines are then built every time."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder(), os.W_OK)


def key_of(onnx: Path, options: BuildOptions, module: str, version: str, gpu: str = "") -> str:
    """32 hex digits over everything that decides an engine's bytes. options: already fitted; gpu: what
    full TensorRT builds on."""
    values = {**options.to_dict(), "timing_cache": None}  # changes the build's time, not its result
    told = [_RECEIPT_VERSION, content_hash(onnx), values, module, version, gpu]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def lookup(key: str) -> BuildResult | None:
    """The entry of this key when it is whole; None otherwise."""
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
    """The engine of `key` as the file `out`, built with build(path of the engine to write) when there
    is none -> (engine, whether it was there). An entry that is damaged, or removed meanwhile, is
    built again."""
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
            shutil.copyfile(made / "engine", out)  # before others can remove it
            raise_if_interrupted()
            os.replace(made, place)
        return replace(result, engine=out), False


def _copied(engine: Path, out: Path) -> bool:
    """False when the engine was removed meanwhile by a process that takes no lock."""
    try:
        shutil.copyfile(engine, out)
    except FileNotFoundError:
        return False
    return True


def entries() -> list[Cached]:
    """All entries of the cache, the newest first."""
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
    """Remains of builds that were killed and not repeated."""
    return [
        Cached(key, "?", (), *_size_and_age(place), damaged=True, unfinished=True)
        for place, key, _ in dead_partials(folder())
    ]


def remove(prefix: str = "", *, older_than_days: float | None = None) -> list[Cached]:
    """Delete the old enough entries whose key starts with `prefix` (empty: every key) -> the deleted.

    Remains of killed builds are deleted at any age. Entries that are being built now are kept. Raises
    ExportError when nothing has the prefix.
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
            ):  # it removes the partial folders of dead processes
                gone.append(entry)
            continue
        if older_than_days is not None and entry.age_days < older_than_days:
            continue
        with contextlib.suppress(BlockingIOError), _locked(entry.key, None):
            shutil.rmtree(folder() / entry.key, ignore_errors=True)
            gone.append(entry)
    return gone


def _size_and_age(place: Path) -> tuple[int, float]:
    """Bytes and days of a folder, which another process may be removing."""
    size, changed = 0, time.time()
    with contextlib.suppress(OSError):
        changed = place.stat().st_mtime
        size = sum(f.stat().st_size for f in place.iterdir())
    return size, (time.time() - changed) / 86400


@contextlib.contextmanager
def _locked(key: str, on_line: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the key's lock. on_line None: do not wait, raise BlockingIOError."""
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
