"""Record of the engines that this user built on this machine. Engines are executable code.

A bundle cannot prove where its engine was built. `save-build` records each engine in the
user's cache by its sha256; the C++ runtime reads the same records (cpp/src/engine_check.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from save_deploy.bundle import FileRecord
from save_deploy.files import cache_root, keep_in_cache
from save_deploy.runtime.engine_check import RawEntry, Refusal

FOLDER = "engines_built_here"


def note_built_here(sha256: str, what: str) -> bool:
    """Record an engine. Returns False when the cache cannot be written.

    what: description for people.
    """
    return keep_in_cache(_place(sha256), lambda path: path.write_text(f"{what}\n"))


def built_here(sha256: str) -> bool:
    return _place(sha256).is_file()


def trust_refusals(
    entry: RawEntry, files: Mapping[str, FileRecord], *, trust: bool = False
) -> list[Refusal]:
    """Return the refusal of an engine that was not built here, unless `trust` is set.

    An engine without a file record is refused by engine_check.
    """
    record = files.get(entry["file"])
    if trust or record is None or built_here(record.sha256):
        return []
    return [
        Refusal(
            "trust",
            "an engine is code, and this one was not built on this machine",
            f"{entry['file']}, sha256 {record.sha256[:12]}...",
            "an engine built here, or a trusted source",
            "build it here: save-build BUNDLE; or, if you trust the source of the bundle: "
            "--trust-engine, trust=True",
        )
    ]


def _place(sha256: str) -> Path:
    return cache_root() / FOLDER / sha256
