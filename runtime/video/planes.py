"""Marks drawn on the planes of a decoded frame, which spares the way to RGB and back.

Video is stored as brightness and, for two by two pixels, color. Only the box of the marks changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.transforms import Mask
from save_deploy.data.video import AS_STORED, upright
from save_deploy.runtime.pictures import Color
from save_deploy.runtime.video.overlay import DARK, OPACITY, marks_of, tinted
from save_deploy.runtime.video.source import TimedFrame

PIXELS = "yuv420p"
# FFmpeg's numbers of color matrices: BT.709, unknown (taken for BT.601), two of BT.601
_MATRICES = (1, 2, 5, 6)
_FULL_RANGE = 2
_OF_RED_AND_BLUE = {True: (0.2126, 0.0722), False: (0.299, 0.114)}  # BT.709, BT.601
_GRAY = 128  # of the planes of color
# Kinds of pixels; the sum of those of four pixels says how many of each there are, to the base 5
_INSIDE, _AROUND, _RIM = 1, 5, 25
Plane = NDArray[np.uint8]


def canvas_of(frame: TimedFrame, size: tuple[int, int]) -> Any | None:
    """Return a copy of a decoded frame as yuv420p of size (H,W), upright, in limited range.

    size: even; one row and column more than the frame's repeat its last ones.
    None for a frame whose planes need more than that: one that was not decoded here, RGB, another
    matrix, another size, or a turned one of odd size.
    """
    import av

    shown = frame.shown
    if isinstance(shown, np.ndarray) or not shown.format.name.startswith(("yuv", "nv", "p0")):
        return None
    grown = [side - given for side, given in zip(size, frame.size, strict=True)]
    turned = frame.turn != AS_STORED
    if int(shown.colorspace) not in _MATRICES or not {*grown} <= {0, 1} or (turned and any(grown)):
        return None
    if shown.format.name != PIXELS or int(shown.color_range) == _FULL_RANGE:
        shown = shown.reformat(format=PIXELS, dst_color_range="MPEG")
    made = av.VideoFrame(size[1], size[0], PIXELS)
    for plane, given in zip(made.planes, shown.planes, strict=True):
        target, source = _array(plane), upright(_array(given), frame.turn)
        rows, columns = source.shape
        target[:rows, :columns] = source
        target[:, columns:] = target[:, columns - 1 : columns]
        target[rows:] = target[rows - 1 : rows]
    return made


def _array(plane: Any) -> Plane:
    """The samples of a plane, uint8 (H,W), shared with it."""
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, abs(plane.line_size))
    lines = lines[::-1] if plane.line_size < 0 else lines
    return lines[:, : plane.width]


class Brush:
    """Draws marks of one color. bt709: by this matrix, else by BT.601."""

    def __init__(self, color: Color, *, bt709: bool) -> None:
        self._line, (self._dark, *_) = (_as_yuv(c, bt709) for c in (color, DARK))
        self._mixed = [_mixtures(value) for value in self._line[1:]]

    def draw(self, canvas: Any, mask: Mask) -> None:
        """Draw a mask bool (H,W) on a frame of canvas_of(), as overlay.outlined draws it on RGB."""
        bright, *colors = map(_array, canvas.planes)
        grown = [(0, n - given) for n, given in zip(bright.shape, mask.shape, strict=True)]
        marks = marks_of(np.pad(mask, grown, mode="edge") if any(map(sum, grown)) else mask)
        if marks is None:
            return
        part = bright[marks.box]
        np.copyto(part, tinted(part, self._line[0]), where=marks.inside)
        np.copyto(part, np.uint8(round(self._dark)), where=marks.around)
        np.copyto(part, np.uint8(round(self._line[0])), where=marks.rim)
        inside, rim, around = (mask.view(np.uint8) for mask in marks[1:])
        kinds = inside + rim * np.uint8(_RIM - _INSIDE) + around * np.uint8(_AROUND)
        pairs = kinds[::2] + kinds[1::2]
        four = pairs[:, ::2] + pairs[:, 1::2]
        whole = four == 4 * _INSIDE
        mixed = np.divmod(np.flatnonzero((four > 0) & ~whole), four.shape[1])
        half = tuple(slice(side.start // 2, side.stop // 2) for side in marks.box)
        for plane, value, table in zip(colors, self._line[1:], self._mixed, strict=True):
            part = plane[half]
            np.copyto(part, tinted(part, value), where=whole)
            part[mixed] = table[four[mixed], part[mixed]]


def _mixtures(value: float) -> Plane:
    """For the sum of four kinds and a sample, the new sample, uint8 (101,256). value: of the color."""
    sums = np.arange(4 * _RIM + 1)
    rims, around, tinted = sums // _RIM, sums % _RIM // _AROUND, sums % _AROUND
    colored = (rims + OPACITY * tinted) / 4
    kept = np.maximum(0.0, 1 - colored - around / 4)
    mixed = kept[:, None] * np.arange(256) + (colored * value + around / 4 * _GRAY)[:, None]
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def _as_yuv(color: Color, bt709: bool) -> tuple[float, float, float]:
    """RGB 0 to 255 as brightness and color in limited range."""
    red, green, blue = (value / 255 for value in color)
    of_red, of_blue = _OF_RED_AND_BLUE[bt709]
    bright = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    of_color = [(v - bright) / (1 - w) / 2 for v, w in ((blue, of_blue), (red, of_red))]
    return 16 + 219 * bright, _GRAY + 224 * of_color[0], _GRAY + 224 * of_color[1]
