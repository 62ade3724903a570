"""Names of the files that an ONNX graph reads, from the protobuf itself, without the onnx package.

A hash of model.onnx does not cover weights in other files, so every file that a graph names must be
in the manifest.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from save_deploy.errors import BundleError

# message -> {field number: message in it}: all paths from a model to the files of its tensors
_INNER = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_OP_TYPE = 4  # field number in a node
_KEY, _VALUE = 1, 2  # field numbers in an entry
_MAX_DEPTH = 100  # protobuf's own limit
_MAX_FIELDS = 5_000_000  # 100 times the number in vit_h
_PRECOMPILED = b"EPContext"  # node that names or contains an engine


def weight_files(path: Path, listed: Collection[str]) -> tuple[str, ...]:
    """Return the names of an ONNX file's weight files, sorted, relative to its folder.

    Raises BundleError for a file that is not `listed`, for precompiled code in the graph, and for a
    file that is not an ONNX model.
    """
    found = set()
    for location in _locations(path):
        name = PurePosixPath(location).as_posix()
        if name not in listed:
            raise BundleError(
                f"{path.name} reads a file that the manifest does not list",
                got=repr(location[:200]),
                expected="weights in files with a size and a sha256 in manifest.json",
                hint="export it again",
            )
        found.add(name)
    return tuple(sorted(found))


def _locations(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _Walk(data).locations()
    except (OSError, ValueError, IndexError) as error:  # mmap: ValueError for an empty file
        raise BundleError(
            f"{path.name} is not an ONNX model",
            got=str(error)[:200],
            expected="a graph written by save-export",
            hint="copy the bundle again, or export it again",
        ) from None


class _Walk:
    """One pass over the messages of a model."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._fields = data, 0

    def locations(self) -> Iterator[str]:
        if not any(number == 7 for number, _, _ in self._messages(0, len(self._data))):
            raise ValueError("no graph")
        yield from self._inside("model", 0, len(self._data), 0)

    def _inside(self, kind: str, start: int, end: int, depth: int) -> Iterator[str]:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        inner = _INNER[kind]
        for number, first, last in self._messages(start, end):
            if kind == "node" and number == _OP_TYPE and self._data[first:last] == _PRECOMPILED:
                raise ValueError("precompiled code in the graph")
            if (name := inner.get(number)) == "entry":
                yield from self._entry(first, last)
            elif name is not None:
                yield from self._inside(name, first, last, depth + 1)

    def _entry(self, start: int, end: int) -> Iterator[str]:
        """Yield the values of an entry with the key `location`.

        All values of repeated fields count.
        """
        parts = list(self._messages(start, end))
        if any(n == _KEY and self._data[a:b] == b"location" for n, a, b in parts):
            yield from (self._data[a:b].decode() for n, a, b in parts if n == _VALUE)

    def _messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (field number, start, end) of fields with a length: messages, strings, bytes."""
        at = start
        while at < end:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise ValueError(f"more than {_MAX_FIELDS} fields")
            tag, at = self._varint(at)
            tag &= 0xFFFF_FFFF  # protobuf uses 32 bits
            match tag & 7:
                case 0:
                    _, at = self._varint(at)
                case 1:
                    at += 8
                case 2:
                    size, first = self._varint(at)
                    at = first + size
                    if at <= end:
                        yield tag >> 3, first, at
                case 5:
                    at += 4
                case kind:
                    raise ValueError(f"wire type {kind} at byte {at}")
        if at != end:
            raise ValueError("the file is truncated")

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._data[at]
            value |= (byte & 127) << shift
            at += 1
            if byte < 128:
                return value, at
        raise ValueError(f"a number of more than 64 bits at byte {at}")
