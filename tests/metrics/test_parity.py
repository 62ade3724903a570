"""Parity and latency figures, and that a wrong backend cannot pass."""

from __future__ import annotations

import numpy as np
import pytest

from save_deploy.errors import ParityError
from save_deploy.metrics.budget import ParityBudget
from save_deploy.metrics.latency import LatencyResult, speedup
from save_deploy.metrics.parity import mask_agreement, parity
from save_deploy.precision import Precision


def test_worked_example() -> None:
    a = np.array([[[1.0, -1.0], [2.0, -3.0]]])
    b = np.array([[[1.0, 0.5], [2.0, -3.0]]])
    result = parity(a, b)
    assert result.max_abs_err == 1.5
    assert result.mask_agreement == pytest.approx(2 / 3)
    assert mask_agreement(a > 0, b > 0) == result.mask_agreement
    assert result.flipped == 0.25
    assert result.logit_range == 5.0


def test_both_empty_agree() -> None:
    assert parity(-np.ones((1, 2, 2)), -2 * np.ones((1, 2, 2))).mask_agreement == 1.0
    assert mask_agreement(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_an_error(bad: float) -> None:
    with pytest.raises(ParityError, match="NaN"):
        parity(np.ones((1, 2, 2)), np.full((1, 2, 2), bad))


def test_shape_mismatch_is_an_error() -> None:
    with pytest.raises(ParityError, match="shape"):
        parity(np.ones((1, 2, 2)), np.ones((1, 2, 3)))


def test_budget() -> None:
    fp32, fp16 = (
        ParityBudget.for_precision(Precision.parse("fp32")),
        ParityBudget.for_precision(Precision.parse("fp16")),
    )
    a = np.random.default_rng(0).normal(size=(1, 64, 64))
    close, shifted = a + 1e-5, a + 0.05
    assert parity(a, close).within(fp32)
    assert not parity(a, shifted).within(fp32)
    assert not parity(a, shifted).within(fp16)
    with pytest.raises(ParityError, match="over") as caught:
        parity(a, shifted).require(fp32, what="over", hint="cure")
    assert caught.value.exit_code == 2 and "cure" in str(caught.value)


def test_latency() -> None:
    result = LatencyResult(tuple(float(i) for i in range(1, 101)))
    assert (result.p50_ms, result.percentile(90), result.percentile(99)) == (50.0, 90.0, 99.0)
    assert result.frames_per_s == 20.0
    assert result.spread == pytest.approx((75 - 25) / 50)
    assert speedup(LatencyResult((10.0, 20.0, 30.0)), LatencyResult((5.0, 5.0, 30.0))) == 2.0
    even = LatencyResult((8.0, 12.0, 20.0, 40.0)), LatencyResult((4.0, 4.0, 4.0, 4.0))
    assert speedup(*even) == 4.0, "the mean of the two ratios in the middle, 3 and 5"
