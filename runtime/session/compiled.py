"""Compiled models, kept in the cache between starts.

One file each, written under a name of its own and then renamed: processes that start together never see
half of one. Its hash stands in front, so that nothing else is ever given to the backend.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from save_deploy.files import keep_in_cache

_HASH_BYTES = 32


def read_kept(path: Path) -> bytes | None:
    """What was kept there; None where nothing is, or anything else."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    known, content = content[:_HASH_BYTES], content[_HASH_BYTES:]
    return content if hashlib.sha256(content).digest() == known else None


def keep(path: Path, content: bytes) -> None:
    """A full disk or a read-only folder costs the next start its time."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    keep_in_cache(path, write)
