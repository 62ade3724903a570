"""Drawing of a mask on its frame: tint, and an outline visible on bright and dark scenes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.transforms import Frame, Mask
from save_deploy.errors import DataError
from save_deploy.runtime.pictures import MASK, Color

_OPACITY = 0.4
_DARK: Color = (20, 20, 20)
_LINES_OF_HEIGHT = 240  # the outline is one pixel thick per so many rows


def color_of(name: str) -> Color:
    """Parse "red", "#ff3caa" or another color of Pillow to RGB. Raises DataError for other text."""
    from PIL import ImageColor

    if not name:
        return MASK
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise DataError(
            "unknown color", got=name, expected='a name such as red, or "#ff3caa"'
        ) from error
    return red, green, blue


def outlined(frame: Frame, mask: Mask, color: Color = MASK) -> Frame:
    """Return frame (H,W,3) with mask (H,W) tinted, its edge in full color and a dark outline."""
    shown = frame.copy()
    thick = max(1, round(frame.shape[0] / _LINES_OF_HEIGHT))
    box = _box(mask, 2 * thick)
    if box is None:
        return shown
    part, inside = shown[box], mask[box]
    for channel, value in enumerate(color):
        tints = np.rint(np.arange(256) * (1 - _OPACITY) + value * _OPACITY).astype(np.uint8)
        np.copyto(part[..., channel], tints[part[..., channel]], where=inside)
    part[_grown(inside, thick) & ~inside] = _DARK
    part[_grown(~inside, thick) & inside] = color
    return shown


def _box(mask: Mask, margin: int) -> tuple[slice, slice] | None:
    """Return rows and columns of the mask with a margin, None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return (
        slice(max(0, rows[0] - margin), rows[-1] + 1 + margin),
        slice(max(0, columns[0] - margin), columns[-1] + 1 + margin),
    )


def _grown(mask: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """Return mask (H,W) extended by all pixels within n rows and columns."""
    grown = mask.copy()
    for i in range(1, n + 1):
        grown[i:] |= mask[:-i]
        grown[:-i] |= mask[i:]
    wide = grown.copy()
    for i in range(1, n + 1):
        wide[:, i:] |= grown[:, :-i]
        wide[:, :-i] |= grown[:, i:]
    return wide
