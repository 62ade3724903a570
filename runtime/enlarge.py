"""Masks at frame size from logits at network size, by the least work that gives the same pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from save_deploy.data.transforms import Mask

# An interpolated value of Pillow is rounded to float32 twice, each time by 2^-24 of it at most. Values
# nearer to the limit than this share of the logits around them are left to Pillow.
_DOUBT = 2.0**-22
_ABOVE, _MIXED = 1, 2  # kinds of cells


def at_frame_size(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize mask_logits (S,S) to (H,W): bilinear, with antialiasing when shrinking."""
    height, width = size
    resized = Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def mask_at(logits: NDArray[np.float32], size: tuple[int, ...], limit: float = 0.0) -> Mask:
    """Return the mask bool (H,W) of finite logits float32 (S,S): at_frame_size(logits, size) > limit.

    An interpolated value lies between the logits around it. Where all of these are above the limit,
    or none, the pixel is known without it. So values are interpolated along the edge of the mask
    only. A size below S in rows or columns is left to Pillow.
    """
    side, limit = len(logits), float(np.float32(limit))
    if min(size) < side:
        return at_frame_size(logits, size) > limit
    mask, cells = np.zeros(size, bool), _kinds(logits > limit)
    ys, xs = (_axis(side, n).within(np.asarray(cells.any(axis=1 - i))) for i, n in enumerate(size))
    if not (ys.cell.size and xs.cell.size):
        return mask
    kinds = cells.take(xs.cell, axis=1).take(ys.cell, axis=0)
    part = mask[ys.first : ys.first + ys.cell.size, xs.first : xs.first + xs.cell.size]
    np.equal(kinds, _ABOVE, out=part)
    rows, columns = np.divmod(np.flatnonzero(kinds == _MIXED), xs.cell.size)
    values, doubt = _interpolated(logits, ys.at(rows), xs.at(columns))
    values -= limit
    if (np.abs(values) <= doubt).any():
        return at_frame_size(logits, size) > limit
    part[rows, columns] = values > 0
    return mask


class _Axis(NamedTuple):
    """How outputs along one axis lie between inputs.

    first: index of the first output described here.
    cell: for each output, 0 before the center of the first input, k between those of k-1 and k.
    share: for each output, weight of the second of its two inputs, 0 to 1.
    n: number of inputs.
    """

    first: int
    cell: NDArray[np.intp]
    share: NDArray[np.float64]
    n: int

    def within(self, wanted: NDArray[np.bool_]) -> _Axis:
        """The outputs from the first to the last cell that is wanted, (n+1,)."""
        found = np.flatnonzero(wanted)
        if not found.size:
            return self._replace(cell=self.cell[:0], share=self.share[:0])
        begin = int(np.searchsorted(self.cell, found[0]))
        end = int(np.searchsorted(self.cell, found[-1], side="right"))
        return _Axis(begin, self.cell[begin:end], self.share[begin:end], self.n)

    def at(self, chosen: NDArray[np.intp]) -> _Axis:
        return self._replace(cell=self.cell[chosen], share=self.share[chosen])

    @property
    def inputs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Both inputs of each output; at the rim they are the same."""
        return np.maximum(self.cell - 1, 0), np.minimum(self.cell, self.n - 1)


@lru_cache(maxsize=32)
def _axis(n: int, n_out: int) -> _Axis:
    centers = (np.arange(n_out) + 0.5) * n / n_out - 0.5
    before = np.floor(centers)
    return _Axis(0, before.astype(np.intp) + 1, centers - before, n)


def _kinds(above: Mask) -> NDArray[np.uint8]:
    """Kind of each cell between four inputs, uint8 (S+1,S+1), of a bool (S,S)."""
    wide = np.pad(above, 1, mode="edge")
    pairs = wide[1:] & wide[:-1], wide[1:] | wide[:-1]
    every, some = pairs[0][:, 1:] & pairs[0][:, :-1], pairs[1][:, 1:] | pairs[1][:, :-1]
    return np.where(every, np.uint8(_ABOVE), some * np.uint8(_MIXED))


def _interpolated(
    logits: NDArray[np.float32], rows: _Axis, columns: _Axis
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the values (n,) at n outputs, and by how much those of Pillow may differ."""
    (top, bottom), (left, right) = rows.inputs, columns.inputs
    near = [logits[y, x].astype(np.float64) for y in (top, bottom) for x in (left, right)]
    across = [a + (b - a) * columns.share for a, b in (near[:2], near[2:])]
    values = across[0] + (across[1] - across[0]) * rows.share
    largest = np.maximum(*(np.maximum(np.abs(a), np.abs(b)) for a, b in (near[:2], near[2:])))
    return values, largest * _DOUBT
