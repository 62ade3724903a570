"""Cache of compiled models.

Each is one file, written under a temporary name and then renamed, so that processes that start
together never read a partial file. It ends with a digest, which finds damage before the backend
reads it. Processes map the file and share its pages.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.files import keep_in_cache

_DIGEST_BYTES = 32
_BLOCK_BYTES = 4096


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
    content, known = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return content if digest_of_sums(np.frombuffer(content, np.uint8)) == known else None


def keep(path: Path, content: bytes | memoryview) -> bool:
    """Cache the content. Returns False when it cannot be written; the next start compiles again."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(content)
            file.write(digest_of_sums(np.frombuffer(content, np.uint8)))

    return keep_in_cache(path, write)


def digest_of_sums(content: NDArray[np.uint8]) -> bytes:
    """Return the sha256 of the sums of each 4 KiB as 64-bit numbers, and of the rest.

    content: (n,). It finds damage, such as changed bytes and pages in another order, at several times
    the speed of a sha256 of everything; not deceit, such as two numbers of one page exchanged.
    """
    found = hashlib.sha256()
    whole = content.size - content.size % _BLOCK_BYTES
    blocks = content[:whole].view(np.uint64).reshape(-1, _BLOCK_BYTES // 8)  # (blocks,512)
    found.update(np.add.reduce(blocks, axis=1).tobytes())
    found.update(content[whole:].tobytes())
    return found.digest()
