"""The files a bundle is made of: the hashes in it are of what was read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from save_deploy.bundle_files import sha256_of
from save_deploy.errors import CheckpointError


class Sources:
    """Make one before the files are read, call `hash` after, and `require_same` at the end: weights
    stay mapped, so that who writes into a file changes a model that was read before."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._stamps = [_stamp(file) for file in files]
        self._hashes: list[str] = []

    def hash(self) -> None:
        """Raises CheckpointError when a file is no longer the one that was read."""
        self._hashes = [sha256_of(file) for file in self._files]
        for file, before in zip(self._files, self._stamps, strict=True):
            if _stamp(file) != before:
                raise _changed(file)

    def require_same(self) -> None:
        """Raise CheckpointError when a file was written to. Another one in its place is fine."""
        for file, before in zip(self._files, self._stamps, strict=True):
            now = _stamp(file)
            if now[:1] == before[:1] and now != before:
                raise _changed(file)

    def to_dict(self) -> dict[str, Any]:
        """Names, hashes and sizes, as in a manifest."""
        rows = zip(self._files, self._hashes, self._stamps, strict=True)
        return {"files": [{"name": f.name, "sha256": h, "size": stamp[1]} for f, h, stamp in rows]}


def _stamp(file: Path) -> tuple[int, ...]:
    """(number of the file, size, time of the last change); () for none: whoever reads it says so."""
    try:
        status = os.stat(file)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _changed(file: Path) -> CheckpointError:
    return CheckpointError(
        "the checkpoint changed while it was exported",
        got=str(file),
        expected="a file that nobody writes to",
        hint="export again when training has ended, or export a copy",
    )
