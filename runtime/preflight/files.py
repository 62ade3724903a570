"""The engine file against its manifest entry: size, hash and header, without its library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from save_deploy.bundle import FileRecord, sha256_of
from save_deploy.runtime.preflight.rules import Entry, Refusal, library_rules, malformed

_COPY = "copy the bundle again, or build the engine again"
_RECORDED = 32  # bytes of the header in the entry


def check_file(
    entry: Entry, path: Path, record: FileRecord | None, *, hashed: bool = False
) -> list[Refusal]:
    """Reasons why this file is not the engine of the entry, [] = it is. Reads the header and, unless
    the caller has `hashed` it already, the whole file once. record: of manifest.files.

    Raises BundleError for an entry that cannot be read.
    """
    known = library_rules(entry)
    try:
        return list(_check(entry, path, record, known["header"], hashed))
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(entry, repr(error)) from error


def _check(
    entry: Entry, path: Path, record: FileRecord | None, layout: dict[str, Any] | None, hashed: bool
) -> Iterator[Refusal]:
    if record is None or not path.is_file():
        where = "the list of files" if record is None else str(path.parent)
        yield Refusal("file", "engine file is missing", f"no {path.name} in {where}", "it", _COPY)
        return
    size, wanted = path.stat().st_size, int(entry["engine_bytes"])
    if not size == wanted == record.size:
        yield Refusal(
            "size", "engine file has another size", f"{size} bytes", f"{wanted} bytes", _COPY
        )
    with path.open("rb") as file:
        header = file.read(layout["bytes"] if layout else _RECORDED)
    if header[:_RECORDED] != bytes.fromhex(entry["header"]):
        yield Refusal(
            "header",
            "file begins like another engine",
            header[:_RECORDED].hex() or "nothing",
            entry["header"],
            _COPY,
        )
    if layout is not None:
        yield from _layout(entry, header, size, layout)
    if not hashed and sha256_of(path) != record.sha256:
        yield Refusal(
            "sha256",
            "engine file was altered",
            f"another sha256 of {path.name}",
            f"{record.sha256[:12]}...",
            _COPY,
        )


def _layout(entry: Entry, header: bytes, size: int, layout: dict[str, Any]) -> Iterator[Refusal]:
    """The header's own words, as observed in files of this library (its layout is undocumented)."""
    magic = bytes.fromhex(layout["magic"])
    found = [header[at : at + len(magic)] for at in layout["magic_offsets"]]
    if any(part != magic for part in found) or len(header) < layout["bytes"]:
        yield Refusal(
            "magic",
            f"not an engine file of {entry['library']}",
            f"{found[0]!r} at its start, {len(header)} bytes of header",
            f"{magic!r} and {layout['bytes']} bytes of header",
            "build the engine again",
        )
        return
    at = layout["file_size_offset"]
    if (told := int.from_bytes(header[at : at + 8], "little")) != size:
        yield Refusal(
            "header_size", "engine file is cut off or joined", f"{size} bytes", f"{told}", _COPY
        )
    at = layout["version_offset"]
    if (version := ".".join(map(str, header[at : at + 4]))) != entry["library_version"]:
        yield Refusal(
            "header_version",
            "file is of another version than its entry says",
            version,
            entry["library_version"],
            "build the engine again",
        )
    at = layout["targets_offset"]
    mask = int.from_bytes(header[at : at + 4], "little")
    inside = {name for name, bit in layout["targets"].items() if mask & bit}
    if not set(entry["targets"]) <= inside:
        yield Refusal(
            "header_targets",
            "file is for other GPUs than its entry says",
            ", ".join(sorted(inside)) or "none",
            ", ".join(entry["targets"]),
            "build the engine again",
        )
