"""Distance from the threshold of the pixels where a backend and eager differ.

A flip where eager's logit is almost 0 is within the model's own uncertainty; a flip far from 0 is
an error of the backend. Pixels are foreground where their logit is above 0, as in metrics.parity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import ParityError

LEVELS = (0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Margin:
    """Distribution of pixels near the threshold; shares are 0 to 1.

    near: level -> share of pixels with |reference logit| below it.
    flipped: share of pixels on the other side of 0.
    flipped_near: like near, among flipped pixels (1 when there are none).
    on, off: number of pixels flipped to foreground and to background.
    """

    pixels: int
    near: dict[str, float]
    flipped: float
    flipped_near: dict[str, float]
    on: int
    off: int


class MarginMeter:
    """Accumulates frames. NaN or infinite logits raise an error."""

    def __init__(self) -> None:
        self.pixels, self.on, self.off = 0, 0, 0
        self.near, self.flipped_near = dict.fromkeys(LEVELS, 0), dict.fromkeys(LEVELS, 0)

    def add(self, reference: NDArray[np.floating], got: NDArray[np.floating]) -> None:
        """Add two arrays of logits of equal shape (F,S,S). Raises ParityError as flips does."""
        flipped = flips(reference, got)
        size = np.abs(reference)
        self.pixels += flipped.size
        self.on += int((flipped > 0).sum())
        self.off += int((flipped < 0).sum())
        for level in LEVELS:
            below = size < level
            self.near[level] += int(below.sum())
            self.flipped_near[level] += int((below & (flipped != 0)).sum())

    def result(self) -> Margin:
        """Return the result. Raises ParityError when nothing was added."""
        if not self.pixels:
            raise ParityError("nothing was compared", expected="at least one frame")
        n_flipped = self.on + self.off
        return Margin(
            pixels=self.pixels,
            near={str(k): n / self.pixels for k, n in self.near.items()},
            flipped=n_flipped / self.pixels,
            flipped_near={
                str(k): n / n_flipped if n_flipped else 1.0 for k, n in self.flipped_near.items()
            },
            on=self.on,
            off=self.off,
        )


def flips(reference: NDArray[np.floating], got: NDArray[np.floating]) -> NDArray[np.int8]:
    """Return int8 (F,S,S): 1 flipped to foreground, -1 to background, 0 unchanged.

    reference, got: logits (F,S,S).
    Raises ParityError for unequal shapes and for logits that are not finite.
    """
    _require_comparable(reference, got)
    return (got > 0).astype(np.int8) - (reference > 0).astype(np.int8)


def sqnr_db(reference: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    """Return 10 log10(sum of reference^2 / sum of (reference - got)^2), the SQNR in dB.

    It is inf for equal arrays, and -inf when the reference is all 0 and got is not. Raises
    ParityError as flips does.
    """
    _require_comparable(reference, got)
    signal = reference.astype(np.float64)  # float32 sums of a million squares lose precision
    noise = float(np.square(signal - got).sum())
    power = float(np.square(signal).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power else float("-inf")


def _require_comparable(reference: NDArray[np.floating], got: NDArray[np.floating]) -> None:
    if reference.shape != got.shape:
        raise ParityError(
            "outputs differ in shape", got=str(got.shape), expected=str(reference.shape)
        )
    for name, logits in (("the reference", reference), ("the backend", got)):
        if not np.isfinite(logits).all():
            raise ParityError(f"{name} produced NaN or infinite logits", expected="finite values")
