"""Source files of a bundle, with hashes of the content that was read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from save_deploy.bundle_files import sha256_of
from save_deploy.errors import CheckpointError


class Sources:
    """Detects changes of source files during an export.

    Create it before the files are read, call `hash` after reading, and `require_same` at the end.
    Weights stay memory-mapped, so a later write to the file would change the loaded model.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._stamps = [_stamp(file) for file in files]
        self._hashes: list[str] = []

    def hash(self) -> None:
        """Hash the files.

        Raises CheckpointError when a file changed since the object was created.
        """
        self._hashes = [sha256_of(file) for file in self._files]
        for file, before in zip(self._files, self._stamps, strict=True):
            if _stamp(file) != before:
                raise _changed(file)

    def require_same(self) -> None:
        """Raise CheckpointError when a file was modified. A new file in its place is allowed."""
        for file, before in zip(self._files, self._stamps, strict=True):
            now = _stamp(file)
            if now[:1] == before[:1] and now != before:
                raise _changed(file)

    def to_dict(self) -> dict[str, Any]:
        """Return names, hashes and sizes, as in a manifest."""
        rows = zip(self._files, self._hashes, self._stamps, strict=True)
        return {"files": [{"name": f.name, "sha256": h, "size": stamp[1]} for f, h, stamp in rows]}


def _stamp(file: Path) -> tuple[int, ...]:
    """Return (inode, size, modification time in ns), or () for a missing file.

    A missing file is reported by the code that reads it.
    """
    try:
        status = os.stat(file)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _changed(file: Path) -> CheckpointError:
    return CheckpointError(
        "the checkpoint changed during the export",
        got=str(file),
        expected="a file that is not modified",
        hint="export again after training, or export a copy",
    )
