"""Integrity of the files of a bundle: present, equal to the manifest, unchanged since opening."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from save_deploy.errors import BundleError
from save_deploy.files import cache_root, keep_in_cache
from save_deploy.terminal import visible

# Files that no runtime reads: a bundle also runs without them, or with other line ends in them.
FOR_PEOPLE = ("report.md", "report.json", "calibration.json")
INSIDE = "a printable file name below the bundle, without .."
Stamps = Mapping[str, tuple[int, ...]]
_COPY = "copy the bundle again, or export it again"
_SMALL_BYTES = 1_000_000
_SETTLED_S = 60.0


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of one file of the bundle."""

    sha256: str
    size: int


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(folder: Path, but: str) -> dict[str, FileRecord]:
    """Return every file below a folder by relative path, except files named `but`."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != but
    }


def is_inside(name: str) -> bool:
    """Return True for a printable relative path that stays below its folder on every system."""
    path = PurePosixPath(name)
    if ".." in path.parts or path.is_absolute() or not path.parts:
        return False
    if visible(name) != name or re.search(r"[\t\n\r]", name):
        return False
    too_long = len(name.encode()) > 1000 or any(len(part.encode()) > 255 for part in path.parts)
    return not too_long and not re.search(r"[\\:]", name)


def check_files(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Check size and sha256 of every file that a runtime reads.

    Raises BundleError naming the first that differs.
    """
    for name, record in files.items():
        if name not in FOR_PEOPLE:
            _check(folder, name, record)


@contextmanager
def checked(
    folder: Path, files: Mapping[str, FileRecord], *, meanwhile: bool, parsed: Collection[str]
) -> Iterator[Callable[[], object]]:
    """Run check_files and yield a function that waits for the end of it.

    meanwhile: large files other than the `parsed` ones are hashed while the block runs. They hold
        numbers, which backends only map. They are not hashed again while they stay as they were.
    Raises BundleError for a file that differs, also instead of an error of the block, which that
    file may have caused.
    """
    now = {
        name: record
        for name, record in files.items()
        if not meanwhile or name in parsed or record.size <= _SMALL_BYTES
    }
    later = {name: record for name, record in files.items() if name not in now}
    check_files(folder, now)
    mark = _mark_of_check(folder, later)
    if not later or (mark is not None and mark.exists()):
        yield lambda: None
        return
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(check_files, folder, later)
        try:
            yield found.result
        finally:
            found.result()
    if mark is not None and mark == _mark_of_check(folder, later):
        keep_in_cache(mark, Path.touch)


def _mark_of_check(folder: Path, files: Mapping[str, FileRecord]) -> Path | None:
    """Return the empty file in the cache which says that these files were compared with their hashes.

    Its name is a hash of the records, and of identity, size and both times of each file; nobody can
    set the time of the last change (ctime). None when a file changed within the last minute, so that
    another change may leave its times the same, or may be lost when the power fails; and on Windows,
    where ctime is the time of creation.
    """
    told: list[object] = [os.path.realpath(folder)]
    for name, record in sorted(files.items()):
        try:
            status = os.stat(folder / name)
        except OSError:
            return None
        changed_s = max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
        if sys.platform == "win32" or not changed_s < time.time() - _SETTLED_S:
            return None
        times = (status.st_mtime_ns, status.st_ctime_ns)
        told.append([name, record.sha256, status.st_dev, status.st_ino, status.st_size, *times])
    return cache_root() / "checked" / hashlib.sha256(json.dumps(told).encode()).hexdigest()


def notes_on_reports(folder: Path, files: Mapping[str, FileRecord]) -> tuple[str, ...]:
    """Return a line for each report file that is missing or differs from the manifest."""
    notes = []
    for name in FOR_PEOPLE:
        if name in files:
            try:
                _check(folder, name, files[name])
            except BundleError as error:
                notes.append(f"{name}: {error.what} ({error.got})")
    return tuple(notes)


def _check(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleError(
            "bundle is incomplete",
            got=f"no {name} in {folder}",
            expected="all files of the manifest",
            hint=_COPY,
        )
    try:
        size = path.stat().st_size
        same = size == record.size and sha256_of(path) == record.sha256
    except OSError as error:
        raise BundleError("bundle file cannot be read", got=str(error), hint=_COPY) from None
    if not same:
        raise BundleError(
            "bundle file was altered",
            got=f"{name} ({size} bytes)",
            expected=f"{record.size} bytes, sha256 {record.sha256[:12]}...",
            hint=_COPY,
        )


def stamps_of(folder: Path, names: Iterable[str]) -> Stamps:
    """Return a stamp of each existing file that changes when the file is modified or replaced."""
    found = {}
    for name in names:
        try:
            status = os.stat(folder / name)
        except OSError:
            continue
        # not ctime, which new hard links to the file change
        found[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def require_unchanged(folder: Path, before: Stamps) -> None:
    """Raise BundleError when a file differs from its stamp."""
    after = stamps_of(folder, before)
    for name, stamp in before.items():
        if after.get(name) != stamp:
            raise BundleError(
                "bundle file changed while it was opened",
                got=f"{folder / name}",
                expected="files that are not modified",
                hint="write a new bundle beside the old one and rename it",
            )
