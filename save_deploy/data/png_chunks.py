"""The parts of a PNG file that make its pixels, checked as libpng checks them.

Pillow alone refuses a picture for a large comment, believes wrong checksums of pixels, and gives some
gray to indices behind the end of a palette. The C++ program reads through libpng, and both must say
the same of a file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import BinaryIO, NamedTuple

START = b"\x89PNG\r\n\x1a\n"
_PALETTE_BYTES = 768  # of 256 colors
_INDEXED = 3  # kind of color
_ANCILLARY = 0x20  # in the first byte of a name: readers may skip such a chunk
_PIECE = 1 << 20
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # kind of color -> values of a pixel
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# x, y, steps of Adam7's seven pictures
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def plain_png(
    file: BinaryIO, check: Callable[[int, int], object], *, transparency: bool
) -> BytesIO:
    """The same PNG of pixels, palette and orientation alone, colors that the palette lacks black.

    check(width, height) is called before pixels are read; transparency: keep that of a palette.
    Raises ValueError for a file that ends before its last chunk, a wrong checksum, an unknown chunk
    that may not be skipped, and what libpng refuses of the order and sizes of chunks.
    """
    file.seek(len(START))
    plain, names, inflate, missing = BytesIO(), [b""], zlib.decompressobj(), 0
    plain.write(START)
    kept = {b"IDAT", b"IEND", b"eXIf"}
    while names[-1] != b"IEND":
        name, content = _chunk(file)
        _check_order(name, names)
        if name == b"IHDR":
            header = _Header.of(content)
            check(header.width, header.height)
            color, missing = header.color, header.n_bytes
            kept |= {b"PLTE", b"tRNS"} if color == _INDEXED and transparency else set()
            kept |= {b"PLTE"} if color == _INDEXED else set()
            _write(plain, name, content)
        elif name == b"IDAT" and b"PLTE" in kept and b"PLTE" not in names:
            raise ValueError("no palette")
        if name == b"IDAT" and missing > 0:
            missing -= _inflated(inflate, content, missing)
        if name == b"PLTE" and name in kept:
            if len(content) % 3 or not 3 <= len(content) <= _PALETTE_BYTES:
                raise ValueError(f"a palette of {len(content)} bytes")
            content = content.ljust(_PALETTE_BYTES, b"\0")
        if name in kept and not (name == b"eXIf" and name in names):  # the first one counts
            _write(plain, name, content)
        names.append(name)
    if missing > 0:
        raise ValueError(f"file is truncated: {missing} bytes of pixels are missing")
    plain.seek(0)
    return plain


def _chunk(file: BinaryIO) -> tuple[bytes, bytes]:
    """Name and content."""
    size, name = struct.unpack(">I4s", _exactly(file, 8))
    if size >= 1 << 31 or not name.isalpha():
        raise ValueError("a damaged chunk")
    content = _exactly(file, size)
    if zlib.crc32(content, zlib.crc32(name)) != struct.unpack(">I", _exactly(file, 4))[0]:
        raise ValueError(f"a wrong checksum of {name.decode()}")
    return name, content


def _exactly(file: BinaryIO, size: int) -> bytes:
    """Memory grows with what is there, not with what is promised."""
    pieces = []
    while size:
        piece = file.read(min(size, _PIECE))
        if not piece:
            raise ValueError("file is truncated")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _check_order(name: bytes, before: list[bytes]) -> None:
    first, once = b"IHDR" not in before, name in (b"IHDR", b"PLTE")
    if first != (name == b"IHDR") or (once and name in before):
        raise ValueError(f"{name.decode()} in the wrong place")
    if name == b"IDAT" and name in before and before[-1] != name:
        raise ValueError("pixels in two places")
    if name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND") and not name[0] & _ANCILLARY:
        raise ValueError(f"an unknown chunk {name.decode()}")


class _Header(NamedTuple):
    width: int
    height: int
    bits: int
    color: int
    interlaced: bool

    @classmethod
    def of(cls, content: bytes) -> _Header:
        if len(content) != struct.calcsize(">IIBBBBB"):
            raise ValueError(f"a header of {len(content)} bytes")
        width, height, bits, color, packing, filters, interlace = struct.unpack(">IIBBBBB", content)
        if packing or filters or interlace > 1 or bits not in _DEPTHS.get(color, ()):
            raise ValueError("an unknown kind of pixels, filter or interlace")
        return cls(width, height, bits, color, interlace == 1)

    @property
    def n_bytes(self) -> int:
        """Of all rows, each with the number of its filter in front."""
        n_bits = self.bits * _CHANNELS[self.color]
        total = 0
        for x, y, step_x, step_y in _PASSES if self.interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(self.width - x) // step_x), -(-(self.height - y) // step_y)
            total += rows * (1 + -(-columns * n_bits // 8)) if columns > 0 and rows > 0 else 0
        return total


def _inflated(inflate: zlib._Decompress, content: bytes, most: int) -> int:
    """How many bytes follow, `most` at most; Pillow takes rows that are missing for black."""
    found = 0
    try:
        while found < most and (content or not inflate.eof):
            piece = inflate.decompress(content, min(_PIECE, most - found))
            found, content = found + len(piece), inflate.unconsumed_tail
            if not piece and not content:
                break
    except zlib.error as error:
        raise ValueError(f"damaged pixels: {error}") from None
    return found


def _write(plain: BytesIO, name: bytes, content: bytes) -> None:
    plain.write(struct.pack(">I4s", len(content), name) + content)
    plain.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))
