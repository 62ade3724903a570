"""Reader of PNG and JPEG files, detected by their first bytes and rotated as Exif says.

The C++ runtime reads the same files to the same pixels and rejects the same ones
(tools/image_*.cpp). No other format is tried, because Pillow starts an external program for some of
them.
"""

from __future__ import annotations

import io
import os
import struct
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from save_deploy.data.png_chunks import plain_png
from save_deploy.errors import DataError

# As in C++; the second is Pillow's bomb limit.
MAX_SIDE, MAX_PIXELS, MAX_BYTES = 65_535, 178_956_970, 1 << 30
EXPECTED = "a PNG or JPEG file"
_ORIENTATION = 0x0112  # Exif tag
# Exif orientation -> transposition to the upright image
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Jpeg(JpegImageFile):
    """Pillow's reader without the print density, which it reads from Exif with warnings."""

    def _read_dpi_from_exif(self) -> None:
        pass


# (first bytes, reader, maximum of pixels per byte of the file). PNG: one bit per pixel after
# deflate (1040 : 1). JPEG: one bit per block of 64 pixels, doubled to be safe.
_KINDS: tuple[tuple[bytes, type[PngImageFile | JpegImageFile], int], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile, 8 * 1040),
    (b"\xff\xd8\xff", _Jpeg, 1024),
)
_SMALL = 1 << 22  # pixels that are decoded for any file size


def is_picture(path: Path) -> bool:
    """Whether a file begins as a PNG or JPEG does. False for one that cannot be read."""
    try:
        if not os.path.isfile(path):  # nor a pipe, which would wait
            return False
        with path.open("rb") as file:
            start = file.read(8)
    except (OSError, ValueError):
        return False
    return any(start.startswith(kind[0]) for kind in _KINDS)


def read_frame(path: Path) -> NDArray[np.uint8]:
    """Read a PNG or JPEG as uint8 (H,W,3) RGB. Alpha is dropped, 16-bit gray v becomes v >> 8.

    Raises DataError for a missing, damaged, truncated or too large file and for other formats.
    """
    return as_rgb(open_picture(path))


def as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image from open_picture to uint8 (H,W,3)."""
    if image.mode == "I;16":
        return np.repeat(_gray(image)[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def read_gray(path: Path) -> NDArray[np.uint8]:
    """Read an image as uint8 (H,W); colors become luma. Raises DataError as read_frame does."""
    image = open_picture(path)
    return _gray(image) if image.mode == "I;16" else np.asarray(image.convert("L"))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read an image as bool (H,W): every value above black is foreground.

    Raises DataError as read_frame does.
    """
    image = open_picture(path)
    return np.asarray(image if image.mode == "I;16" else image.convert("L")) > 0


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    return (np.asarray(image) >> 8).astype(np.uint8)


def decode_frame(content: bytes, name: str = "the picture") -> NDArray[np.uint8]:
    """The bytes of a PNG or JPEG as read_frame reads them from a file. Raises DataError as it does."""
    return as_rgb(_upright(_decoded(io.BytesIO(content), name, len(content))))


def open_picture(path: Path, *, transparency: bool = False) -> Image.Image:
    """Return the decoded, upright image in mode 1, L, LA, I;16, P, RGB or RGBA.

    transparency: keep the transparent colors of a palette.
    Raises DataError as read_frame does.
    """
    if not os.path.isfile(path):  # also False for an invalid file name
        raise DataError("image not found", got=str(path), expected=EXPECTED)
    try:
        with path.open("rb") as file:
            image = _decoded(
                file, str(path), os.fstat(file.fileno()).st_size, transparency=transparency
            )
    except OSError as error:
        raise _unreadable(str(path), str(error)) from error
    return _upright(image, transparency=transparency)


def _decoded(file: BinaryIO, name: str, n_bytes: int, *, transparency: bool = False) -> Image.Image:
    """As it is stored. Raises DataError."""
    try:
        start = file.read(8)
        kind = next((kind for kind in _KINDS if start.startswith(kind[0])), None)
        if kind is None:
            raise _unreadable(name, "neither PNG nor JPEG")
        if n_bytes > MAX_BYTES:
            raise _wrong_size(name, f"{n_bytes} bytes", f"at most {MAX_BYTES} bytes")
        file.seek(0)
        check = partial(_check, name, most=max(_SMALL, kind[2] * n_bytes))
        if kind[1] is PngImageFile:
            file = plain_png(file, check, transparency=transparency)
        image = kind[1](file)
        _check_colors(name, image)
        check(*image.size)
        image.load()
    except DataError:
        raise
    except Exception as error:  # Pillow may raise any exception for a damaged file
        raise _unreadable(name, str(error) or type(error).__name__) from error
    return image


def _upright(image: Image.Image, *, transparency: bool = False) -> Image.Image:
    if not transparency:
        image.info.pop("transparency", None)
    turn = _TURNS.get(orientation(image.info.get("exif", b"")))
    return image if turn is None else image.transpose(turn)


def _unreadable(name: str, reason: str) -> DataError:
    return DataError("image cannot be read", got=f"{name}: {reason}", expected=EXPECTED)


def _check(name: str, width: int, height: int, *, most: int) -> None:
    """Before memory is taken. Raises DataError for a picture of more than `most` pixels."""
    if not (width and height) or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        allowed = f"1 to {MAX_SIDE} pixels a side, {MAX_PIXELS} in all"
        raise _wrong_size(name, f"{width} x {height}", allowed)
    if width * height > most:
        raise _unreadable(name, f"file is truncated: {width} x {height} pixels do not fit in it")


def _wrong_size(name: str, got: str, expected: str) -> DataError:
    return DataError("image of a size that cannot be used", got=f"{name}: {got}", expected=expected)


def _check_colors(name: str, image: Image.Image) -> None:
    if image.mode == "CMYK":
        raise DataError(
            "image of print colors (CMYK)",
            got=name,
            expected="RGB or gray",
            hint="convert the image to RGB",
        )


def orientation(exif: bytes) -> int:
    """Return the orientation of an Exif block, 1 (upright) to 8; 1 when missing or unreadable.

    Pillow's own function also reads XMP, which viewers ignore, and warns about damaged blocks.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for i in range(n_entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * i)
            if tag == _ORIENTATION:
                return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    except struct.error:  # an offset past the end
        pass
    return 1
