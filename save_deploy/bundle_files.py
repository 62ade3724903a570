"""The files of a bundle: are they there, are they those of the manifest, did they stay the same?"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from save_deploy.errors import BundleError

# Written for people, read by no runtime: a bundle runs without them, and with other line ends in them.
FOR_PEOPLE = ("report.md", "report.json", "calibration.json")
INSIDE = "a printable file name below the bundle, without .."
Stamps = Mapping[str, tuple[int, ...]]
_COPY = "copy the bundle again, or export it again"


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of one file of the bundle."""

    sha256: str
    size: int


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(folder: Path, but: str) -> dict[str, FileRecord]:
    """Every file below a folder, by its path relative to it, but those of one name."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != but
    }


def is_inside(name: str) -> bool:
    """True for a relative path that stays below its folder, on every system, and prints as it is."""
    path = PurePosixPath(name)
    if ".." in path.parts or path.is_absolute() or not path.parts or not name.isprintable():
        return False
    too_long = len(name) > 1000 or any(len(part.encode()) > 255 for part in path.parts)
    return not too_long and not re.search(r"[\\:]", name)


def check_files(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Compare size and sha256 of every file that a runtime reads. Raises BundleError naming the first
    that differs."""
    for name, record in files.items():
        if name not in FOR_PEOPLE:
            _check(folder, name, record)


def notes_on_reports(folder: Path, files: Mapping[str, FileRecord]) -> tuple[str, ...]:
    """A line for each file for people that is missing or is not the manifest's."""
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
    """What changes when a file is written to or replaced, of each file that is there."""
    found = {}
    for name in names:
        try:
            status = os.stat(folder / name)
        except OSError:
            continue
        # not the time of the last change of its state: links to a file change that
        found[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def require_unchanged(folder: Path, before: Stamps) -> None:
    """Raise BundleError when a file is no longer the one that its stamp was taken of."""
    after = stamps_of(folder, before)
    for name, stamp in before.items():
        if after.get(name) != stamp:
            raise BundleError(
                "bundle file changed while it was opened",
                got=f"{folder / name}",
                expected="files that nobody writes to",
                hint="write a bundle beside the old one and rename it",
            )
