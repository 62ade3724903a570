"""Cache of compiled models.

Each is one file, written under a temporary name and then renamed, so that processes that start
together never read a partial file. It ends with its hash, so that no other content reaches the
backend. Processes map the file and share its pages.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from save_deploy.files import keep_in_cache

_HASH_BYTES = 32


@dataclass(frozen=True)
class Cache:
    """Cache of one graph.

    folder: named after the hashes of the graph and its weights.
    confirm: raises BundleError unless the files have these hashes. Nothing is written before it was
        called, and nothing at all without it.
    """

    folder: Path
    confirm: Callable[[], object] | None = None


def read_kept(path: Path) -> memoryview | None:
    """Return the cached content, mapped from the file, or None when it is missing or damaged."""
    try:
        with path.open("rb") as file:
            # OpenVINO's tensors must be writable; nothing writes, so the pages stay shared
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    content, known = content[:-_HASH_BYTES], content[-_HASH_BYTES:]
    return content if hashlib.sha256(content).digest() == known else None


def keep(path: Path, content: bytes | memoryview) -> bool:
    """Cache the content. Returns False when it cannot be written; the next start compiles again."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())

    return keep_in_cache(path, write)
