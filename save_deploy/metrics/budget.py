"""Allowed deviation of a backend from the eager model. Without numpy, as options hold it."""

from __future__ import annotations

from dataclasses import dataclass

from save_deploy.precision import Precision


@dataclass(frozen=True)
class ParityBudget:
    """Allowed deviation.

    max_abs_err: of logits, None for no limit.
    min_agreement: IoU of binary masks.
    """

    max_abs_err: float | None
    min_agreement: float

    @classmethod
    def for_precision(cls, precision: Precision) -> ParityBudget:
        """Return the default budget of a precision.

        FP32 differs only by the order of summation. With FP16 single logits may differ, but masks
        agree. With INT8 and FP8 masks agree except at their edges.
        """
        if precision == Precision("fp32"):
            return cls(max_abs_err=1e-3, min_agreement=0.9999)
        return cls(max_abs_err=None, min_agreement=0.97 if precision.quantized else 0.995)
