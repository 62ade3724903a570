"""Engines are code: which ones were built on this machine, by this user?

A bundle cannot say so of itself. What `save-deploy build` builds is noted in the user's cache, by the
sha256 of the engine; the C++ runtime reads the same notes (cpp/src/engine_check.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from save_deploy.bundle import FileRecord
from save_deploy.files import cache_root, keep_in_cache
from save_deploy.runtime.engine_check import RawEntry, Refusal

FOLDER = "engines_built_here"


def note_built_here(sha256: str, what: str) -> bool:
    """Remember an engine. what: text for people. False where the cache cannot be written."""
    return keep_in_cache(_place(sha256), lambda path: path.write_text(f"{what}\n"))


def built_here(sha256: str) -> bool:
    return _place(sha256).is_file()


def trust_refusals(
    entry: RawEntry, files: Mapping[str, FileRecord], *, trust: bool = False
) -> list[Refusal]:
    """The reason against an engine that was not built here, unless the caller trusts its source. An
    engine without a record is refused elsewhere."""
    record = files.get(entry["file"])
    if trust or record is None or built_here(record.sha256):
        return []
    return [
        Refusal(
            "trust",
            "an engine is code, and this one was not built on this machine",
            f"{entry['file']}, sha256 {record.sha256[:12]}...",
            "an engine built here, or your word for its source",
            "build it here: save-deploy build BUNDLE; or, if you trust where the bundle comes from: "
            "--trust-engine, trust=True",
        )
    ]


def _place(sha256: str) -> Path:
    return cache_root() / FOLDER / sha256
