"""The one reader of pictures: PNG and JPEG, told by their first bytes and turned as viewers show them.

The C++ runtime reads the same files to the same pixels and refuses the same ones (tools/image_*.cpp).
No other format is tried: Pillow starts an external program for some of them.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from save_deploy.errors import DataError

MAX_SIDE, MAX_PIXELS = 65_535, 178_956_970  # as in C++; the latter is where Pillow sees a bomb
EXPECTED = "a PNG or JPEG file"
_ORIENTATION = 0x0112  # tag of Exif
# Exif orientation -> what turns the stored picture upright
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
    """Pillow's, but for the density of the print, which it reads from Exif with warnings."""

    def _read_dpi_from_exif(self) -> None:
        pass


# First bytes -> reader, and the most pixels that a byte of such a file can stand for: one bit each
# after deflate; one bit for a block of 64, twice that to be sure.
_KINDS: tuple[tuple[bytes, type[PngImageFile | JpegImageFile], int], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile, 8 * 1040),
    (b"\xff\xd8\xff", _Jpeg, 1024),
)
_SMALL = 1 << 22  # pixels that are decoded whatever the size of the file


def read_frame(path: Path) -> NDArray[np.uint8]:
    """uint8 (H,W,3) RGB of a PNG or JPEG. Alpha is dropped, 16-bit gray v becomes v >> 8.

    Raises DataError for a missing, damaged, truncated or too large file and for any other format.
    """
    return as_rgb(open_picture(path))


def as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H,W,3) of a picture in a mode of open_picture."""
    if image.mode == "I;16":
        return np.repeat(_gray(image)[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def read_gray(path: Path) -> NDArray[np.uint8]:
    """uint8 (H,W), colors by their luma. Raises DataError as read_frame does."""
    image = open_picture(path)
    return _gray(image) if image.mode == "I;16" else np.asarray(image.convert("L"))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """bool (H,W) of a PNG or JPEG of any mode; anything above black is foreground.

    Raises DataError as read_frame does.
    """
    image = open_picture(path)
    return np.asarray(image if image.mode == "I;16" else image.convert("L")) > 0


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    return (np.asarray(image) >> 8).astype(np.uint8)


def open_picture(path: Path, *, transparency: bool = False) -> Image.Image:
    """Decoded and upright, in mode 1, L, LA, I;16, P, RGB or RGBA; without the transparent colors of
    a palette unless asked for. Raises DataError as read_frame does."""
    if not os.path.isfile(path):  # False for a name that no file can have, too
        raise DataError("image not found", got=str(path), expected=EXPECTED)
    try:
        with path.open("rb") as file:
            start, n_bytes = file.read(8), os.fstat(file.fileno()).st_size
            kind = next((kind for kind in _KINDS if start.startswith(kind[0])), None)
            if kind is None:
                raise _unreadable(path, "neither PNG nor JPEG")
            file.seek(0)
            image = kind[1](file)
            _check(path, image, most=max(_SMALL, kind[2] * n_bytes))
            image.load()
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise anything inside Pillow
        raise _unreadable(path, str(error) or type(error).__name__) from error
    if not transparency:
        image.info.pop("transparency", None)
    turn = _TURNS.get(orientation(image.info.get("exif", b"")))
    return image if turn is None else image.transpose(turn)


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError("image cannot be read", got=f"{path}: {reason}", expected=EXPECTED)


def _check(path: Path, image: Image.Image, most: int) -> None:
    """Before memory is taken. Raises DataError for a picture of more than `most` pixels."""
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DataError(
            "image of a size that cannot be used",
            got=f"{path}: {width} x {height}",
            expected=f"1 to {MAX_SIDE} pixels a side, {MAX_PIXELS} in all",
        )
    if image.mode == "CMYK":
        raise DataError(
            "image of print colors (CMYK)",
            got=str(path),
            expected="RGB or gray",
            hint="convert the image to RGB",
        )
    if width * height > most:
        raise _unreadable(path, f"file is truncated: {width} x {height} pixels do not fit in it")


def orientation(exif: bytes) -> int:
    """1 (upright) to 8 from an Exif block; 1 when it has none or cannot be read.

    Not Pillow's own: that also believes XMP, which viewers do not, and warns about damaged blocks.
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
    except struct.error:  # points behind the end
        pass
    return 1
