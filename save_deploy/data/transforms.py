"""Resizing of frames and masks to the model resolution. The project has no other resize rule.

Default (A10): square resize, aspect ratio ignored, as SAMA-AVS and AVSBench do. Frames are bilinear
with antialiasing (Pillow), masks nearest. There is no normalization, because the graph takes uint8.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from save_deploy.data.pictures import read_frame as read_frame
from save_deploy.data.pictures import read_mask as read_mask
from save_deploy.errors import DataError
from save_deploy.files import new_file

Frame = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def check_mask_name(path: Path) -> None:
    """Raise DataError for the name of another format than PNG. A name without suffix is fine, and so is
    what is written through, as a device."""
    through = os.path.exists(path) and not os.path.isfile(path)
    if path.suffix.lower() not in ("", ".png") and not through:
        raise DataError("mask cannot be written", got=str(path), expected="a .png path")


def write_mask(path: Path, mask: Mask, *, replace: bool = True) -> None:
    """Write a mask bool (H,W) as PNG, white for True.

    Raises OutputError when writing fails, and DataError for a name of another format.
    """
    check_mask_name(path)
    with new_file(path, what="the mask", replace=replace) as partial:
        Image.fromarray(mask.astype(np.uint8) * 255).save(partial, format="PNG")


def box_of(mask: Mask) -> tuple[slice, slice] | None:
    """Return the rows and columns that a mask bool (H,W) lies in, None for an empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    inside = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[inside].any(axis=0))
    return inside, slice(int(columns[0]), int(columns[-1]) + 1)


def resize_frame(frame: Frame, res: int) -> Frame:
    """Resize uint8 (H,W,3) to uint8 (res,res,3), bilinear with antialiasing."""
    if frame.shape[:2] == (res, res):
        return np.ascontiguousarray(frame)
    return np.asarray(Image.fromarray(frame).resize((res, res), Image.Resampling.BILINEAR))


def resize_mask(mask: Mask, res: int) -> Mask:
    """Resize bool (H,W) to bool (res,res), nearest."""
    if mask.shape == (res, res):
        return mask
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((res, res), Image.Resampling.NEAREST)) > 0
