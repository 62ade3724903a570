"""Parity of a backend with the eager model on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import ParityError
from save_deploy.metrics.budget import ParityBudget


@dataclass(frozen=True)
class ParityResult:
    """Measured parity.

    max_abs_err: over all logits.
    mask_agreement: IoU of all masks, pooled over frames (1 when both are empty).
    flipped: share of pixels on the other side of logit 0.
    logit_range: max - min of the eager logits.
    """

    max_abs_err: float
    mask_agreement: float
    flipped: float
    logit_range: float
    n_frames: int

    def within(self, budget: ParityBudget) -> bool:
        """Return True when the result is within the budget."""
        close = budget.max_abs_err is None or self.max_abs_err <= budget.max_abs_err
        return close and self.mask_agreement >= budget.min_agreement

    def require(
        self, budget: ParityBudget, *, what: str, hint: str, details: tuple[str, ...] = ()
    ) -> None:
        """Raise ParityError when over budget.

        details: further lines of measurements for the error.
        """
        if self.within(budget):
            return
        bound = "" if budget.max_abs_err is None else f", error <= {budget.max_abs_err:g}"
        raise ParityError(
            what,
            got="\n".join(
                (
                    f"mask agreement {self.mask_agreement:.5f}, "
                    f"max abs logit error {self.max_abs_err:.1e}",
                    *details,
                )
            ),
            expected=f"agreement >= {budget.min_agreement}{bound}",
            hint=hint,
        )


def mask_agreement(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks, or of two stacks of masks pooled; 1 when both are empty."""
    return _iou(*_overlap(a, b))


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the number of pixels in both masks, and in any of them."""
    return int((a & b).sum()), int((a | b).sum())


def _iou(inter: int, union: int) -> float:
    return inter / union if union else 1.0


class ParityMeter:
    """Accumulates frames. NaN or infinite logits raise an error."""

    def __init__(self) -> None:
        self.worst, self.inter, self.union, self.flips, self.pixels = 0.0, 0, 0, 0, 0
        self.low, self.high, self.n_frames = np.inf, -np.inf, 0

    def add(self, expected: NDArray[np.floating], got: NDArray[np.floating]) -> None:
        """Add two arrays of logits of equal shape; the first axis is frames. Raises ParityError."""
        if expected.shape != got.shape:
            raise ParityError(
                "outputs differ in shape", got=str(got.shape), expected=str(expected.shape)
            )
        if not np.isfinite(got).all():
            raise ParityError(
                "the backend produced NaN or infinite logits",
                expected="finite values",
                hint="export with --fp32",
            )
        a, b = expected > 0, got > 0
        self.worst = max(self.worst, float(np.abs(expected - got).max()))
        inter, union = _overlap(a, b)
        self.inter, self.union = self.inter + inter, self.union + union
        self.flips += int((a != b).sum())
        self.pixels += a.size
        self.low, self.high = (
            min(self.low, float(expected.min())),
            max(self.high, float(expected.max())),
        )
        self.n_frames += len(expected)

    def result(self) -> ParityResult:
        """Return the result. Raises ParityError when nothing was added."""
        if not self.n_frames:
            raise ParityError("nothing was compared", expected="at least one frame")
        return ParityResult(
            max_abs_err=self.worst,
            mask_agreement=_iou(self.inter, self.union),
            flipped=self.flips / self.pixels,
            logit_range=self.high - self.low,
            n_frames=self.n_frames,
        )


def parity(expected: NDArray[np.floating], got: NDArray[np.floating]) -> ParityResult:
    """Compare two arrays of logits of equal shape; the first axis is frames."""
    meter = ParityMeter()
    meter.add(expected, got)
    return meter.result()
