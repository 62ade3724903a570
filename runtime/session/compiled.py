"""Cache of compiled models.

Each is one file, written under a temporary name and then renamed, so that processes that start
together never read a partial file. It starts with its hash, so that no other content reaches the
backend.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from save_deploy.files import keep_in_cache

_HASH_BYTES = 32


def read_kept(path: Path) -> bytes | None:
    """Return the cached content, or None when it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    known, content = content[:_HASH_BYTES], content[_HASH_BYTES:]
    return content if hashlib.sha256(content).digest() == known else None


def keep(path: Path, content: bytes) -> None:
    """Cache the content. Errors are ignored; the next start then compiles again."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    keep_in_cache(path, write)
