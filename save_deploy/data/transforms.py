"""Frames and masks -> arrays of the network's size. The only resize rule of the project.

Default (A10): square resize, aspect ignored, as SAMA-AVS and AVSBench do. Bilinear with antialias
(Pillow) for frames, nearest for masks. No normalization: the graph takes uint8.
"""

from __future__ import annotations

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


def write_mask(path: Path, mask: Mask) -> None:
    """bool (H,W) -> PNG, white = True. Raises OutputError when it cannot be written, DataError for the
    name of another format."""
    with new_file(path, what="the mask") as partial:
        try:
            Image.fromarray(mask.astype(np.uint8) * 255).save(partial)
        except ValueError as error:
            raise DataError(
                "mask cannot be written", got=str(path), expected="a .png path"
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
