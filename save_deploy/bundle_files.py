"""Integrity of the files of a bundle: present, equal to the manifest, unchanged since opening."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
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
_SETTLED_NS = 60 * 10**9


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of one file of the bundle."""

    sha256: str
    size: int


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return _sha256(file)


def _sha256(file: BufferedReader) -> str:
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


def check_files(folder: Path, files: Mapping[str, FileRecord]) -> dict[str, os.stat_result]:
    """Check size and sha256 of every file that a runtime reads; return the status of each.

    Raises BundleError naming the first that differs.
    """
    return {
        name: _check(folder, name, record)
        for name, record in files.items()
        if name not in FOR_PEOPLE
    }


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
    now, later = dict[str, FileRecord](), dict[str, FileRecord]()
    for name, record in files.items():
        if not meanwhile or name in parsed or record.size <= _SMALL_BYTES:
            now[name] = record
        elif name not in FOR_PEOPLE and not _has_mark(folder / name, record):
            later[name] = record
    check_files(folder, now)
    if not later:
        yield lambda: None
        return
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(check_files, folder, later)
        try:
            yield found.result
        finally:
            compared = found.result()
    for name, status in compared.items():
        mark = _mark_of_check(folder / name, later[name], status)
        # the path may lead to another file than the one that was compared
        if mark is not None and mark == _mark_of_check(folder / name, later[name]):
            keep_in_cache(mark, Path.touch)


def _has_mark(path: Path, record: FileRecord) -> bool:
    mark = _mark_of_check(path, record)
    return mark is not None and os.path.exists(mark)


def _mark_of_check(
    path: Path, record: FileRecord, status: os.stat_result | None = None
) -> Path | None:
    """Return the empty file in the cache which says that a file was compared with its hash.

    Its name is a hash of the sha256, and of path, device, inode, size and both times of the file;
    programs cannot set the time of the last change (ctime). The C++ runtime uses the same names
    (kept.cpp). None when the file changed within the last minute, so that another change may leave
    its times the same, or may be lost when the power fails; and on other systems than Linux, some of
    which have another ctime.

    status: of the file; None for that at the path.
    """
    try:
        status = status or os.stat(path)
        real = os.fsencode(os.path.realpath(path))
    except OSError:
        return None
    times = (status.st_mtime_ns, status.st_ctime_ns)
    if sys.platform != "linux" or not max(times) < time.time_ns() - _SETTLED_NS:
        return None
    told = (record.sha256, status.st_dev, status.st_ino, status.st_size, *times)
    text = real + "".join(f"\n{value}" for value in told).encode()
    return cache_root() / "checked" / hashlib.sha256(text).hexdigest()


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


def _check(folder: Path, name: str, record: FileRecord) -> os.stat_result:
    path = folder / name
    if not path.is_file():
        raise BundleError(
            "bundle is incomplete",
            got=f"no {name} in {folder}",
            expected="all files of the manifest",
            hint=_COPY,
        )
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            same = status.st_size == record.size and _sha256(file) == record.sha256
    except OSError as error:
        raise BundleError("bundle file cannot be read", got=str(error), hint=_COPY) from None
    if not same:
        raise BundleError(
            "bundle file was altered",
            got=f"{name} ({status.st_size} bytes)",
            expected=f"{record.size} bytes, sha256 {record.sha256[:12]}...",
            hint=_COPY,
        )
    return status


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
