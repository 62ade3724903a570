"""A mask that knows more: where it came from, its outlines, its box, how to draw and store it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.transforms import Frame, Mask, box_of, write_mask
from save_deploy.errors import DataError
from save_deploy.files import new_file

if TYPE_CHECKING:
    from os import PathLike

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up, as (dx, dy)


class Result(np.ndarray):  # type: ignore[type-arg]
    """mask bool (H,W), True = sounding: an array like any other, with methods of its own.

    What is computed from it (`~mask`, `mask & other`) is a plain array; a part of it (`mask[:9]`) keeps
    the methods that need no logits.
    """

    _logits: NDArray[np.float32] | None
    _threshold: float

    def __new__(
        cls, mask: Mask, logits: NDArray[np.float32] | None = None, threshold: float = 0.5
    ) -> Result:
        """logits (S,S): those the mask was made of; threshold: probability above which it is True."""
        made = np.asarray(mask, np.bool_).view(cls)
        made._logits, made._threshold = logits, threshold
        return made

    def __array_finalize__(self, source: Any) -> None:
        self._logits, self._threshold = None, getattr(source, "_threshold", 0.5)

    def __array_wrap__(
        self, array: NDArray[Any], context: Any = None, return_scalar: bool = False
    ) -> Any:
        """Results of numpy's functions: plain."""
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def __reduce__(self) -> Any:
        return Result, (np.asarray(self), self._logits, self._threshold)

    def __repr__(self) -> str:
        if self._logits is None or self.ndim != 2:
            return repr(np.asarray(self))
        height, width = self.shape
        return f"<mask {width} x {height}: {self.share:.1%} sounds, score {self.score:.2f}>"

    @property
    def share(self) -> float:
        """Of the picture that sounds, 0..1."""
        return float(np.asarray(self).mean())

    @property
    def logits(self) -> NDArray[np.float32]:
        """mask_logits float32 (S,S) at network size. Raises DataError for a part of a mask."""
        if self._logits is None:
            raise DataError("a part of a mask has no logits", expected="the mask of a whole frame")
        return self._logits

    @property
    def threshold(self) -> float:
        """Probability above which a pixel sounds."""
        return self._threshold

    @property
    def score(self) -> float:
        """Mean probability of the pixels that sound, threshold..1; 0 where none does. It says how sure
        the model is of what it marks, not whether it is right."""
        inside = self.logits[self.logits > logit_of(self._threshold)].astype(np.float64)
        return float(np.mean(1 / (1 + np.exp(-inside)))) if inside.size else 0.0

    def box(self) -> tuple[int, int, int, int] | None:
        """(left, top, right, bottom) in pixels, right and bottom outside, as Pillow crops; None where
        nothing sounds."""
        box = box_of(np.asarray(self))
        if box is None:
            return None
        rows, columns = box
        return columns.start, rows.start, columns.stop, rows.stop

    def rle(self) -> dict[str, list[int]]:
        """Run lengths as COCO stores them, uncompressed: {"size": [H, W], "counts": [...]}, column by
        column, the first run silent. pycocotools.mask.frPyObjects reads it."""
        return rle_of(np.asarray(self))

    def polygons(self) -> list[NDArray[np.int32]]:
        """Outlines int32 (n,2) as x, y along the edges of pixels: outer ones clockwise on the screen,
        holes the other way round. Filled by the even-odd rule they are the mask again."""
        return polygons_of(np.asarray(self))

    def overlay(self, frame: Any, color: str = "") -> Frame:
        """The frame (H,W,3) with what sounds tinted and outlined, as save-run draws it. color: a name
        such as red, or "#ff3caa"; empty: pink. Raises DataError for a frame of another size."""
        from save_deploy.runtime.inputs import as_frame
        from save_deploy.runtime.video.overlay import color_of, outlined

        picture = as_frame(frame)
        if picture.shape[:2] != self.shape:
            raise DataError(
                "frame of another size than its mask",
                got=f"{picture.shape[1]} x {picture.shape[0]}",
                expected=f"{self.shape[1]} x {self.shape[0]}",
            )
        return outlined(picture, np.asarray(self), color_of(color))

    def save(self, path: str | PathLike[str]) -> None:
        """Write a PNG, white = sounding, or a .json of size, share, score, box, polygons and run
        lengths. A file there is replaced. Raises OutputError where it cannot be written."""
        place = Path(path)
        if place.suffix.lower() != ".json":
            write_mask(place, np.asarray(self))
            return
        with new_file(place, what="the mask") as partial:
            partial.write_text(json.dumps(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """What save() writes as JSON."""
        height, width = self.shape
        return {
            "width": width,
            "height": height,
            "mask_share": round(self.share, 6),
            "score": round(self.score, 4),
            "box": self.box(),
            "polygons": [ring.tolist() for ring in self.polygons()],
            "rle": self.rle(),
        }


def logit_of(threshold: float) -> float:
    """Probability in (0,1) -> logit; 0.5 -> 0."""
    return float(np.log(threshold / (1 - threshold)))


def rle_of(mask: Mask) -> dict[str, list[int]]:
    """See Result.rle. Only the box of the mask is read column by column."""
    height, box = len(mask), box_of(mask)
    if box is None:
        return {"size": list(mask.shape), "counts": [mask.size] if mask.size else []}
    (top, bottom), left = (box[0].start, box[0].stop), box[1].start
    padded = np.zeros((mask[box].shape[1], bottom - top + 2), bool)
    padded[:, 1:-1] = mask[box].T
    edges = padded[:, 1:] != padded[:, :-1]
    columns, rows = np.divmod(np.flatnonzero(edges), edges.shape[1])  # where runs begin and end
    at = (columns + left) * height + rows + top
    if bottom - top == height:  # a run that goes on at the top of the next column has no end
        goes_on = np.flatnonzero(at[1:] == at[:-1])
        at = np.delete(at, [*goes_on, *(goes_on + 1)])
    counts = np.diff(at, prepend=0, append=mask.size).tolist()
    return {"size": list(mask.shape), "counts": counts if counts[-1] else counts[:-1]}


def polygons_of(mask: Mask) -> list[NDArray[np.int32]]:
    """See Result.polygons. Where two pixels meet at a corner only, each keeps its own outline."""
    out = _edges(mask)
    rings = []
    while out:
        start = next(iter(out))
        at, step = start, out[start][0]
        ring: list[tuple[int, int]] = []
        while True:
            steps = out[at]
            # at a corner of two pixels there are two ways out: the right turn stays with the pixel
            turn = (step + 1) % 4
            taken = turn if turn in steps else steps[0]
            steps.remove(taken)
            if not steps:
                del out[at]
            if taken != step or not ring:
                ring.append(at)
            step = taken
            dx, dy = _STEPS[step]
            at = (at[0] + dx, at[1] + dy)
            if at == start and (at not in out or (step + 1) % 4 not in out[at]):
                break
        rings.append(np.array(ring, np.int32))
    return rings


def _edges(mask: Mask) -> dict[tuple[int, int], list[int]]:
    """Corner (x, y) -> the steps of _STEPS that lead from it along an edge, the mask to its right."""
    inside = np.pad(mask, 1)
    found: dict[tuple[int, int], list[int]] = {}
    above, below = inside[:-1, 1:-1], inside[1:, 1:-1]  # of horizontal edges (H+1,W)
    before, after = inside[1:-1, :-1], inside[1:-1, 1:]  # of vertical edges (H,W+1)
    for step, edges, shift in (
        (0, below & ~above, (0, 0)),
        (1, before & ~after, (0, 0)),
        (2, above & ~below, (1, 0)),
        (3, after & ~before, (0, 1)),
    ):
        rows, columns = np.nonzero(edges)
        for x, y in zip((columns + shift[0]).tolist(), (rows + shift[1]).tolist(), strict=True):
            found.setdefault((x, y), []).append(step)
    return found
