"""Cache of graphs as ONNX Runtime optimized them, with weights packed for this CPU.

Each is a folder: the optimized graph, a data file with the weights as the kernels read them, and a
record of what is in them. A session maps the data file, so that all processes share one copy of the
weights, and nothing is optimized or packed again. The folder is written under another name and then
renamed; a lock lets one of several processes that start together write it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle_files import sha256_of
from save_deploy.errors import SaveDeployError
from save_deploy.files import new_folder
from save_deploy.progress import raise_if_interrupted
from save_deploy.runtime.session.compiled import digest_of_sums

GRAPH, DATA, RECORD = "model.onnx", "model.onnx.data", "record.json"
_WAIT_S, _POLL_S = 300.0, 0.02
_log = logging.getLogger(__name__)
Load = Callable[[Path], Any]


def open_packed(
    place: Path, load: Load, *, make: Load, confirm: Callable[[], object] | None, n_bytes: int
) -> Any | None:
    """Return the session of the graph cached in the folder `place`, which is written when needed.

    load(path): opens a packed graph.
    make(path): writes the packed graph to path, its weights to DATA beside it.
    confirm: raises unless the original files have the hashes that name the folder; called before
        something is written. None: nothing is written.
    n_bytes: expected size on disk.
    Returns None when the graph cannot be cached. Damaged content is written again.
    """
    found = _load_kept(place, load)
    if found is None and confirm is not None:
        try:
            with _locked(place):
                found = _load_kept(place, load)  # another process wrote it meanwhile
                if found is None:
                    confirm()
                    found = _written(place, load, make, n_bytes)
        except _CannotKeep as error:
            _log.info("packed weights are not cached in %s: %s", place, error)
    return found


@dataclass(frozen=True)
class Part:
    """Size in bytes and digest of a cached file: sha256 of the graph, digest_of_sums of weights."""

    digest: str
    size: int

    @classmethod
    def of(cls, path: Path) -> Part:
        digest = sha256_of(path) if path.name == GRAPH else _digest_of_weights(path)
        return cls(digest, path.stat().st_size)


def _digest_of_weights(path: Path) -> str:
    empty = not path.stat().st_size  # which cannot be mapped
    content = np.empty(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
    return digest_of_sums(content).hex()


class _CannotKeep(Exception):
    """Nothing can be cached; not raised outside of this file."""


def _load_kept(place: Path, load: Load) -> Any | None:
    """Open the cached graph; None when it is missing, damaged or somebody else's.

    The graph is hashed before it is parsed; the weights are summed meanwhile, since they are numbers.
    """
    records = _read_record(place)
    if records is None or not all(_is_own(place / name, r) for name, r in records.items()):
        return None
    if not _is_whole(place / GRAPH, records[GRAPH]):
        return None
    with ThreadPoolExecutor(1) as pool:
        weights = pool.submit(_is_whole, place / DATA, records.get(DATA))
        try:
            session = load(place / GRAPH)
        except Exception as error:  # exceptions of onnxruntime have no common base class
            _log.info("the packed graph in %s cannot be opened: %s", place, error)
            return None
        return session if weights.result() else None


def _read_record(place: Path) -> dict[str, Part] | None:
    try:
        listed = json.loads((place / RECORD).read_text())
        records = {str(name): Part(**row) for name, row in listed.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return records if GRAPH in records and records.keys() <= {GRAPH, DATA} else None


def _is_own(path: Path, record: Part) -> bool:
    """Return True for a file of the recorded size that only this user or root can have written."""
    try:
        found = path.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != record.size:
        return False
    return not hasattr(os, "getuid") or (
        found.st_uid in (0, os.getuid()) and not found.st_mode & stat.S_IWOTH
    )


def _is_whole(path: Path, record: Part | None) -> bool:
    try:
        return record is None or Part.of(path) == record
    except OSError:
        return False


def _written(place: Path, load: Load, make: Load, n_bytes: int) -> Any:
    """Write the folder and return its session, opened before the folder gets its name."""
    try:
        with new_folder(place, what="the packed graph", is_ours=lambda _: None) as folder:
            free = shutil.disk_usage(folder).free
            if free < 2 * n_bytes:
                raise _CannotKeep(f"{free / 1e6:.0f} MB are free, {n_bytes / 1e6:.0f} MB needed")
            try:
                make(folder / GRAPH)
                session = load(folder / GRAPH)
            except Exception as error:  # as above
                raise _CannotKeep(str(error).splitlines()[0][:300]) from error
            made = [folder / name for name in (GRAPH, DATA) if (folder / name).is_file()]
            records = {f.name: asdict(Part.of(f)) for f in made}
            for file in made:
                file.chmod(0o644)
            (folder / RECORD).write_text(json.dumps(records, indent=1) + "\n")
    except SaveDeployError as error:
        raise _CannotKeep(error.got or error.what) from error
    return session


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the lock of a cached graph; the system releases it when its process dies.

    Raises _CannotKeep when the folder cannot be written or another process holds the lock for
    minutes.
    """
    try:
        import fcntl
    except ImportError:  # Windows: several processes may write, the last one renames
        yield
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = place.with_name(f"{place.name}.lock").open("a")
    except OSError as error:
        raise _CannotKeep(str(error)) from error
    with file:
        end = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                raise_if_interrupted()
                if time.monotonic() > end:
                    raise _CannotKeep(f"another process has written for {_WAIT_S:g} s") from None
                time.sleep(_POLL_S)
            except OSError as error:  # a file system without locks
                raise _CannotKeep(str(error)) from error
        yield
