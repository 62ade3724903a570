"""Margins of the threshold, counted by hand, and SQNR."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from save_deploy.errors import ParityError
from save_deploy.metrics.margin import MarginMeter, flips, sqnr_db

# |logit|: four below 0.1, five below 0.5, six below 1; 0 is background
REFERENCE = np.array([[[0.05, -0.05, 0.0, 0.3], [-0.7, 2.0, -3.0, 0.05]]])
GOT = np.array([[[-0.1, 0.2, 0.01, 0.4], [0.1, -0.2, 0.0, 0.5]]])


def test_flips() -> None:
    signed = flips(REFERENCE, GOT)
    assert signed.dtype == np.int8
    np.testing.assert_array_equal(signed, [[[-1, 1, 1, 0], [1, -1, 0, 0]]])


def test_worked_example() -> None:
    meter = MarginMeter()
    meter.add(REFERENCE, GOT)
    result = meter.result()
    assert (result.pixels, result.on, result.off) == (8, 3, 2)
    assert result.flipped == 5 / 8
    assert result.near == {"0.1": 4 / 8, "0.5": 5 / 8, "1.0": 6 / 8}
    # flipped: 0.05, -0.05, 0, -0.7, 2
    assert result.flipped_near == {"0.1": 3 / 5, "0.5": 3 / 5, "1.0": 4 / 5}


def test_levels_are_open_and_frames_pool() -> None:
    """A logit on a level is not below it; the mean is over pixels of all calls, not over calls."""
    meter = MarginMeter()
    meter.add(np.array([[[0.5, 1.0]]]), np.array([[[0.5, -1.0]]]))
    meter.add(np.full((2, 1, 1), 0.25), np.full((2, 1, 1), 0.25))
    meter.add(np.full((4, 1, 1), 9.0), np.full((4, 1, 1), 9.0))
    result = meter.result()
    assert result.pixels == 8 and result.flipped == 1 / 8 and (result.on, result.off) == (0, 1)
    assert result.near == {"0.1": 0.0, "0.5": 2 / 8, "1.0": 3 / 8}
    assert result.flipped_near == {"0.1": 0.0, "0.5": 0.0, "1.0": 0.0}


def test_nothing_flipped() -> None:
    meter = MarginMeter()
    meter.add(np.full((1, 2, 2), 5.0), np.full((1, 2, 2), 1.0))
    result = meter.result()
    assert result.flipped == 0.0 and set(result.flipped_near.values()) == {1.0}


def test_sqnr() -> None:
    reference = np.array([[[3.0, 4.0]]], np.float32)
    assert sqnr_db(reference, np.array([[[3.0, 3.5]]], np.float32)) == pytest.approx(20.0)
    assert sqnr_db(reference, np.zeros((1, 1, 2), np.float32)) == pytest.approx(0.0)
    assert sqnr_db(reference, reference.copy()) == float("inf")
    assert sqnr_db(np.zeros((1, 1, 2)), reference) == float("-inf")


def test_nothing_added_is_an_error() -> None:
    with pytest.raises(ParityError, match="nothing was compared"):
        MarginMeter().result()


@pytest.mark.parametrize("judge", [MarginMeter().add, flips, sqnr_db])
def test_bad_logits_are_an_error(judge: Callable[..., object]) -> None:
    good = np.ones((1, 2, 2))
    with pytest.raises(ParityError, match="shape"):
        judge(good, np.ones((1, 2, 3)))
    for bad in (np.nan, np.inf):
        with pytest.raises(ParityError, match="the backend produced NaN"):
            judge(good, np.full((1, 2, 2), bad))
        with pytest.raises(ParityError, match="the reference produced NaN"):
            judge(np.full((1, 2, 2), bad), good)
