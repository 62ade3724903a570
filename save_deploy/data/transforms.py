"""Frames and masks -> arrays of the network's size. The one resize rule of the project lives here.

Default (A10): square resize, aspect ignored, as SAMA-AVS and AVSBench do. Bilinear with antialias
(Pillow) for frames, nearest for masks. No normalisation: the graph takes uint8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from save_deploy.errors import DataError

Frame = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def read_frame(path: Path) -> Frame:
    """Image file -> uint8 (H,W,3) RGB. Raises DataError for a missing or corrupt file."""
    return np.asarray(_open(path, "RGB"))


def read_mask(path: Path) -> Mask:
    """Mask file of any mode ('1', 'L', 'P', RGB) -> bool (H,W); anything above black is foreground."""
    return np.asarray(_open(path, "L")) > 0


def write_mask(path: Path, mask: Mask) -> None:
    """bool (H,W) -> PNG, white = True. Raises DataError when it cannot be written."""
    try:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    except (OSError, ValueError) as error:
        raise DataError("mask cannot be written", got=str(error), expected="a .png path") from error


def _open(path: Path, mode: str) -> Image.Image:
    if not path.is_file():
        raise DataError("image not found", got=str(path), expected="a PNG or JPEG file")
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            "image cannot be read", got=f"{path}: {error}", expected="a PNG or JPEG file"
        ) from error


def resize_frame(frame: Frame, res: int) -> Frame:
    """uint8 (H,W,3) -> uint8 (res,res,3), bilinear with antialias."""
    if frame.shape[:2] == (res, res):
        return np.ascontiguousarray(frame)
    return np.asarray(Image.fromarray(frame).resize((res, res), Image.Resampling.BILINEAR))


def resize_mask(mask: Mask, res: int) -> Mask:
    """bool (H,W) -> bool (res,res), nearest."""
    if mask.shape == (res, res):
        return mask
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((res, res), Image.Resampling.NEAREST)) > 0
