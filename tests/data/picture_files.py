"""Picture files for the readers of both languages: what is in them, and what must come out."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SIZE = (37, 21)  # no side is a multiple of a JPEG's blocks
PNG_START = b"\x89PNG\r\n\x1a\n"
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth and without symmetry: each way up differs from all others."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    rgb = np.stack([250 * x, 250 * y, 120 + 100 * x * y], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: NDArray[Any], color: int, bits: int = 8, *, extra: bytes = b"") -> bytes:
    """A PNG of values (H,W,channels), of the depths and colors that Pillow does not write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return PNG_START + parts + chunk(b"IEND", b"")


def _parts(
    rows: bytes, color: int = 2, *, first: bytes = b"", late: bytes = b"", end: bytes | None = None
) -> bytes:
    """A PNG of the scene's size with chunks in front of its pixels and behind them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, color, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return (
        PNG_START + header + first + pixels + late + (chunk(b"IEND", b"") if end is None else end)
    )


def _damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


def png_header(width: int, height: int) -> bytes:
    """Nothing but the promise of so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9c\x03\0\0\0\0\x01")


def values_16(channels: int) -> NDArray[np.uint16]:
    shape = (SIZE[1], SIZE[0], channels)
    return np.random.default_rng(3).integers(0, 65_536, shape, dtype=np.uint16)


def exif(orientation: int, *, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """An Exif block with the tag Make in front of the orientation."""
    entries = [(0x010F, 2, 2, b"x\0\0\0")]
    value = struct.pack(f"{order}HH", orientation, 0)
    entries.append((0x0112, kind, count, value))
    packed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + start + struct.pack(f"{order}H", len(entries)) + packed + bytes(4)


def with_exif(form: str, block: bytes, *, late: bool = False) -> bytes:
    """The scene with this Exif block; late: behind the pixels of a PNG."""
    if form == "JPEG":
        return saved(scene(), "JPEG", quality=95, subsampling=0, exif=block)
    plain, part = saved(scene(), "PNG"), chunk(b"eXIf", block.removeprefix(b"Exif\0\0"))
    at = len(plain) - 12 if late else len(PNG_START) + 25  # before IEND, or behind IHDR
    return plain[:at] + part + plain[at:]


def shown(content: bytes) -> NDArray[np.uint8]:
    """RGB by Pillow's own conversions, turned by its exif_transpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(Image.open(BytesIO(content)))
        return np.asarray(image.convert("RGB"))


def jpeg_claiming(side: int, *, progressive: bool = True) -> bytes:
    """A small JPEG whose header promises side x side pixels."""
    content = bytearray(saved(scene(), "JPEG", progressive=progressive))
    at = content.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(content)


def _gray_16() -> tuple[bytes, NDArray[np.uint8]]:
    values = values_16(1)
    return png(values, 0, 16), np.repeat((values >> 8).astype(np.uint8), 3, axis=-1)


def _transparent(mode: str) -> bytes:
    if mode == "P":
        return saved(scene().quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))
    return saved(scene().convert(mode), "PNG", transparency=(9, 9, 9) if mode == "RGB" else 9)


_PNGS = {
    "16-bit gray with alpha": png(values_16(2), 4, 16),
    "16-bit RGB": png(values_16(3), 2, 16),
    "16-bit RGBA": png(values_16(4), 6, 16),
    "bits": saved(scene().convert("1"), "PNG"),
    "gray with alpha": saved(scene().convert("LA"), "PNG"),
    "palette": saved(scene().quantize(64), "PNG"),
    "palette of 2 bits": saved(scene().quantize(4), "PNG"),
    "palette with transparent colors": _transparent("P"),
    "gray with a transparent level": _transparent("L"),
    "RGB with a transparent color": _transparent("RGB"),
}
_JPEGS = {
    "JPEG": saved(scene(), "JPEG", quality=90),
    "JPEG 4:4:4": saved(scene(), "JPEG", quality=90, subsampling=0),
    "progressive JPEG": saved(scene(), "JPEG", quality=80, progressive=True),
    "gray JPEG": saved(scene().convert("L"), "JPEG", quality=80),
    "JPEG with bytes behind its end": saved(scene(), "JPEG", quality=90) + b"\0" * 40,
}
_EXIF = {
    **{f"{f}, orientation {k}": with_exif(f, exif(k)) for f in ("PNG", "JPEG") for k in range(10)},
    **{f"big endian {k}": with_exif("JPEG", exif(k, order=">")) for k in (5, 6)},
    "PNG, Exif behind the pixels": with_exif("PNG", exif(6), late=True),
}
# Blocks that say nothing to anybody: the picture is as it is stored.
_BROKEN_EXIF = {
    "of no kind": exif(6, kind=99),
    "two orientations": exif(6, count=2),
    "cut": exif(6)[:24],
    "only a name": b"Exif\0\0",
    "points behind its end": b"Exif\0\0II*\0\xf0\xff\xff\xff",
    "points near its end": b"Exif\0\0II*\0\x0b\0\0\0\0\0\0",
    "many entries": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(12),
    "no TIFF": b"Exif\0\0" + b"\xff" * 40,
}

_ROWS = b"".join(b"\0" + row.tobytes() for row in np.asarray(scene()))
_INDICES = (np.arange(SIZE[0] * SIZE[1], dtype=np.uint8) % 8).reshape(SIZE[1], SIZE[0])
_INDEX_ROWS = b"".join(b"\0" + row.tobytes() for row in _INDICES)
_FOUR_COLORS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [250, 240, 230]], np.uint8)
_EXIF_6 = chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))
_TEXT = chunk(b"tEXt", b"a\0b")
# What says nothing about the pixels and is passed over, however large or broken.
_PASSED_OVER = {
    "a text of 3 MB": chunk(b"iTXt", b"workflow" + bytes(5) + b"a" * 3_000_000),
    "a text that grows": chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(20_000_000), 9)),
    "a broken profile": chunk(b"iCCP", b"n\0\0garbage"),
    "a profile that grows": chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(20_000_000), 9)),
    "an animation of 2^31 frames": chunk(b"acTL", struct.pack(">II", 1 << 31, 0)),
    "an odd gamma": chunk(b"gAMA", struct.pack(">I", 100)) + chunk(b"sBIT", bytes(3)),
}
_WHOLE_PNGS: dict[str, tuple[bytes, NDArray[np.uint8]]] = {
    **{
        f"PNG with {what}": (_parts(_ROWS, first=part), np.asarray(scene()))
        for what, part in _PASSED_OVER.items()
    },
    "PNG with bytes behind its end": (_parts(_ROWS) + b"PK" * 999, np.asarray(scene())),
    "two orientations, the first counts": (
        _parts(_ROWS, first=_EXIF_6, late=chunk(b"eXIf", exif(3)[6:])),
        np.rot90(np.asarray(scene()), -1),
    ),
    "indices behind the palette are black": (
        _parts(_INDEX_ROWS, 3, first=chunk(b"PLTE", _FOUR_COLORS.tobytes())),
        np.concatenate([_FOUR_COLORS, np.zeros((4, 3), np.uint8)])[_INDICES],
    ),
}
_WRONG_TEXT = _TEXT[:-1] + bytes([_TEXT[-1] ^ 1])
_PLAIN = _parts(_ROWS)
_BROKEN_PNGS = {
    "PNG with a wrong checksum of its header": _damaged(_PLAIN, 32),
    "PNG with a wrong checksum of its pixels": _damaged(_PLAIN, len(_PLAIN) - 13),
    "PNG with a wrong checksum of a text": _parts(_ROWS, first=_WRONG_TEXT),
    "PNG with a wrong checksum of a late text": _parts(_ROWS, late=_WRONG_TEXT),
    "PNG without its last chunk": _parts(_ROWS, end=b""),
    "PNG with pixels in two places": _parts(b"", first=chunk(b"IDAT", b"x") + _TEXT),
    "PNG with a row too little": _parts(_ROWS[: -len(_ROWS) // SIZE[1]]),
    "PNG without a palette": _parts(_INDEX_ROWS, 3),
    "PNG with a chunk nobody knows": _parts(_ROWS, first=chunk(b"ABCD", b"x")),
    "PNG of Xcode": PNG_START + chunk(b"CgBI", bytes(4)) + _PLAIN[8:],
    "PNG with a chunk beyond all files": _parts(_ROWS, late=b"\x90\0\0\0tEXt"),
}

# name -> file, RGB, largest difference between two decoders: those of JPEG may round apart
READ: dict[str, tuple[bytes, NDArray[np.uint8], int]] = {
    "16-bit gray": (*_gray_16(), 0),
    **{name: (content, shown(content), 0) for name, content in _PNGS.items()},
    **{name: (*found, 0) for name, found in _WHOLE_PNGS.items()},
    **{name: (content, shown(content), 2) for name, content in _JPEGS.items()},
    **{name: (c, shown(c), 2 * name.startswith(("JPEG", "big"))) for name, c in _EXIF.items()},
    **{
        f"{form}, Exif {name}": (
            with_exif(form, block),
            shown(with_exif(form, exif(1))),
            2 * (form == "JPEG"),
        )
        for name, block in _BROKEN_EXIF.items()
        for form in ("PNG", "JPEG")
    },
}

_FLOATS = Image.fromarray(np.asarray(scene().convert("L"), np.float32) / 255)
# name -> file, a word of the refusal
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "neither PNG nor JPEG"),
    "text": (b"hello", "neither PNG nor JPEG"),
    "PostScript": (POSTSCRIPT, "neither PNG nor JPEG"),
    "float TIFF": (saved(_FLOATS, "TIFF"), "neither PNG nor JPEG"),
    "16-bit TIFF": (saved(Image.fromarray(values_16(1)[..., 0]), "TIFF"), "neither PNG nor JPEG"),
    **{
        form: (saved(scene(), form), "neither PNG nor JPEG")
        for form in ("BMP", "GIF", "TIFF", "WEBP", "PPM", "EPS")
    },
    "CMYK": (saved(scene().convert("CMYK"), "JPEG"), "CMYK"),
    **{name: (content, "image cannot be read") for name, content in _BROKEN_PNGS.items()},
    "half a PNG": (saved(scene(), "PNG")[:200], "truncated"),
    "half a JPEG": (saved(scene(), "JPEG")[:-200], "image"),
    "start of a PNG": (PNG_START, "image"),
    "start of a JPEG": (b"\xff\xd8\xff", "image"),
    "PNG of no pixels": (png_header(0, 5), "image"),
    "PNG larger than all": (png_header(20_000, 20_000), "178956970"),
    "PNG wider than all": (png_header(70_000, 1), "65535"),
    "JPEG larger than all": (jpeg_claiming(60_000), "178956970"),
    "PNG that its file cannot fill": (png_header(13_000, 13_000), "truncated"),
    # a progressive one is decoded into 1 GB of coefficients; libjpeg says: no backing store
    "JPEG that its file cannot fill": (jpeg_claiming(13_000), "image"),
}
