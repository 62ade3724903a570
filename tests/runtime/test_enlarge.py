"""Masks at frame size: those of Pillow's whole enlargement to the pixel, by counted less work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from save_deploy.runtime import enlarge

SIZES = ((720, 1280), (50, 31), (97, 63), (16, 16), (7, 9), (16, 40), (9, 64), (33, 17))


def whole(logits: np.ndarray, size: tuple[int, int], limit: float) -> np.ndarray:
    """Pillow's enlargement of all of it, and the limit."""
    image = Image.fromarray(logits).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image) > limit


def samples(side: int) -> list[np.ndarray]:
    """Noise, smooth shapes, shapes at the rim, signs of one kind, and whole numbers, which meet the
    limit exactly."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:side, :side]
    blob = side / 4 - np.hypot(y - side * 0.4, x - side * 0.6)
    found = [rng.normal(0, 5, (side, side)), blob, blob - side, 9 - x, y - side + 3.5]
    found += [np.full((side, side), v) for v in (-1, 0, 1)]
    found += [rng.integers(-2, 3, (side, side)), np.where(blob > 0, 30, -1e-7), -np.abs(blob)]
    return [np.asarray(logits, np.float32) for logits in found]


@pytest.mark.parametrize("limit", [0.0, 1.5, -0.3])
def test_masks_are_those_of_the_whole(limit: float) -> None:
    for k, logits in enumerate(samples(16)):
        for size in SIZES:
            found = enlarge.mask_at(logits, size, limit)
            assert found.dtype == bool and found.shape == size
            np.testing.assert_array_equal(found, whole(logits, size, limit), f"{k} {size}")


def test_a_broken_box_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above with a box that lacks its last row of cells."""
    plain = enlarge._Axis.within

    def cut(axis: Any, wanted: np.ndarray) -> Any:
        found = plain(axis, wanted)
        return found._replace(cell=found.cell[:-3], share=found.share[:-3])

    monkeypatch.setattr(enlarge._Axis, "within", cut)
    with pytest.raises(AssertionError):
        test_masks_are_those_of_the_whole(0.0)


def test_values_are_computed_along_the_edge_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: a disc of 256 logits at 720p needs 1 % of the pixels, and Pillow none of them."""
    counts = {"pixels": 0, "whole": 0}
    interpolated, at_frame_size = enlarge._interpolated, enlarge.at_frame_size

    def counted(logits: Any, rows: Any, columns: Any) -> Any:
        counts["pixels"] += rows.cell.size
        return interpolated(logits, rows, columns)

    def all_of_it(*args: Any) -> Any:
        counts["whole"] += 1
        return at_frame_size(*args)

    monkeypatch.setattr(enlarge, "_interpolated", counted)
    monkeypatch.setattr(enlarge, "at_frame_size", all_of_it)
    y, x = np.mgrid[:256, :256].astype(np.float32)
    disc = 50 - np.hypot(y - 128, x - 100)
    mask = enlarge.mask_at(disc, (720, 1280))
    assert mask.mean() == pytest.approx(np.pi * 50**2 / 256**2, rel=0.01)
    cells = 8 * 50  # those a circle crosses, 5 x 2.8 pixels each
    assert 0.9 * cells * 14 < counts["pixels"] < 1.1 * cells * 14 and counts["whole"] == 0
    enlarge.mask_at(-np.abs(disc) - 1, (720, 1280))
    assert counts["pixels"] < 1.1 * cells * 14, "nothing where nothing sounds"
    enlarge.mask_at(np.where(x < 9, np.float32(1), np.float32(-3)), (512, 512))  # a quarter of -3
    assert counts["whole"] == 1, "twin: values at the limit itself are left to Pillow"
