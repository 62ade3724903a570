"""Drawing of a mask on its frame: tint, and an outline visible on bright and dark scenes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.transforms import Frame, Mask, box_of
from save_deploy.errors import DataError
from save_deploy.runtime.pictures import MASK, Color

OPACITY = 0.4
DARK: Color = (20, 20, 20)
_LINES_OF_HEIGHT = 240  # the outline is one pixel thick per so many rows
_WORD = 64  # pixels


class Marks(NamedTuple):
    """What is drawn, in a box of the frame that begins at even rows and columns.

    box: rows and columns. inside: tinted. rim: inside, in full color. around: outside, dark.
    """

    box: tuple[slice, slice]
    inside: Mask
    rim: Mask
    around: Mask


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
    shown, marks = frame.copy(), marks_of(mask)
    if marks is None:
        return shown
    part = shown[marks.box]
    for channel, value in enumerate(color):
        np.copyto(part[..., channel], tinted(part[..., channel], value), where=marks.inside)
    part[marks.around] = DARK
    part[marks.rim] = color
    return shown


def tinted(samples: NDArray[np.uint8], value: float) -> NDArray[np.uint8]:
    """Return the samples of a channel with the tint of a color. value: of the color in this channel."""
    table = np.rint(np.arange(256) * (1 - OPACITY) + value * OPACITY).astype(np.uint8).tobytes()
    # an array as index would first become one of 64-bit numbers
    return np.frombuffer(samples.tobytes().translate(table), np.uint8).reshape(samples.shape)


def marks_of(mask: Mask) -> Marks | None:
    """Return what is drawn for a mask bool (H,W), None for an empty one."""
    found = box_of(mask)
    if found is None:
        return None
    thick = max(1, round(len(mask) / _LINES_OF_HEIGHT))
    margin = 2 * thick
    rows, columns = (
        slice(max(0, side.start - margin) // 2 * 2, (side.stop + margin + 1) // 2 * 2)
        for side in found
    )
    inside = mask[rows, columns]
    # the wide mask, and what is not within reach of the outside, 64 pixels to a word
    packed = _Packed(inside)
    rim = inside & ~packed.shrunk(thick)
    return Marks((rows, columns), inside, rim, packed.grown(thick) & ~inside)


class _Packed:
    """A mask bool (H,W) with 64 pixels of a row in one word, which is as many times faster to shift.

    There is nothing outside of the mask: neither True nor False pixels.
    """

    def __init__(self, mask: Mask) -> None:
        self.shape = mask.shape
        width = mask.shape[1]
        wide = np.zeros((mask.shape[0], -(-width // _WORD) * _WORD), bool)
        wide[:, :width] = mask
        self._true = _packed(wide)
        wide[:, :width] = ~mask
        self._false = _packed(wide)

    def grown(self, n: int) -> Mask:
        """Return the mask extended by all pixels within n rows and columns."""
        return self._unpacked(_grown(self._true, n))

    def shrunk(self, n: int) -> Mask:
        """Return the mask without the pixels within n rows and columns of a False one."""
        return ~self._unpacked(_grown(self._false, n))

    def _unpacked(self, words: NDArray[np.uint64]) -> Mask:
        count = self.shape[1]
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=count, bitorder="little")
        return bits.view(bool)


def _packed(wide: Mask) -> NDArray[np.uint64]:
    return np.packbits(wide, axis=1, bitorder="little").view("<u8")


def _grown(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    reach = 0
    while reach < n:  # both shifts must meet what is there
        step = min(n - reach, 2 * reach + 1, _WORD - 1)
        up = words.copy()
        up[step:] |= words[:-step]
        up[:-step] |= words[step:]
        words = up | (up << np.uint64(step)) | (up >> np.uint64(step))
        rest = np.uint64(_WORD - step)
        words[:, 1:] |= up[:, :-1] >> rest
        words[:, :-1] |= up[:, 1:] << rest
        reach += step
    return words
