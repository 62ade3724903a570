"""Pictures: where panels lie, what color a flipped pixel has, which frames are the worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from save_deploy.errors import ParityError
from save_deploy.metrics.margin import flips
from save_deploy.runtime.pictures import (
    MASK,
    TURNED_OFF,
    TURNED_ON,
    NamedFrames,
    WorstFrame,
    caption_px,
    comparison_strip,
    gap_px,
    overlay,
    write_worst,
)

S = 64
LABELS = ("frame", "truth", "eager", "int8", "flips")


def example(side: int = S) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A gray frame, truth in the upper half, eager right, the backend wrong in two pixels."""
    frame = np.full((side, side, 3), 100, np.uint8)
    truth = np.zeros((side, side), bool)
    truth[: side // 2] = True
    got = truth.copy()
    got[0, 0], got[-1, -1] = False, True
    return frame, truth, truth.copy(), got


def panel(strip: Image.Image, index: int, side: int = S) -> np.ndarray:
    left, top = gap_px(side) + index * (side + gap_px(side)), caption_px(side)
    return np.asarray(strip)[top : top + side, left : left + side]


def test_overlay() -> None:
    frame, mask = np.full((2, 2, 3), 100, np.uint8), np.array([[True, False], [False, False]])
    tinted = overlay(frame, mask, (200, 0, 100))
    # 45 % of the frame, 55 % of the color
    np.testing.assert_array_equal(tinted[0, 0], [155, 45, 100])
    assert (tinted[~mask] == 100).all() and tinted.dtype == np.uint8
    assert (frame == 100).all()


def test_strip_panels() -> None:
    frame, truth, reference, got = example()
    frame[5, 5] = (250, 10, 10)
    changed = got.astype(np.int8) - reference.astype(np.int8)
    strip = comparison_strip(frame, truth, reference, got, changed, labels=LABELS)
    gap, top = gap_px(S), caption_px(S)
    assert strip.size == (5 * S + 6 * gap, top + S + gap)
    np.testing.assert_array_equal(panel(strip, 0), frame)
    for index, mask in ((1, truth), (2, reference), (3, got)):
        shown = panel(strip, index)
        gray = np.repeat(np.rint(frame.mean(-1, keepdims=True) * 0.8), 3, -1).astype(np.uint8)
        np.testing.assert_array_equal(shown, overlay(gray, mask, MASK))
    flipped = panel(strip, 4)
    assert tuple(flipped[0, 0]) == TURNED_OFF and tuple(flipped[-1, -1]) == TURNED_ON
    rest = np.ones((S, S), bool)
    rest[0, 0] = rest[-1, -1] = rest[5, 5] = False
    assert (flipped[rest] == 35).all()
    pixels = np.asarray(strip)
    for i in range(6):  # white between the panels
        left = i * (S + gap)
        assert (pixels[top:, left : left + gap] == 255).all()


def test_captions_stay_over_their_panels() -> None:
    frame, _, reference, got = example()
    changed = np.zeros((S, S), np.int8)
    long = ("a_name_much_longer_than_its_panel_is_wide", "", "", "")
    strip = np.asarray(comparison_strip(frame, None, reference, got, changed, labels=long))
    gap, top = gap_px(S), caption_px(S)
    assert strip.shape[1] == 4 * S + 5 * gap
    assert (strip[:top, gap : gap + S] < 128).any()
    assert (strip[:top, gap + S + gap : 3 * S + 4 * gap] == 255).all()


def test_last_caption_counts_flips() -> None:
    """Orange and blue words appear above the last panel, whatever their antialiasing."""
    frame, truth, reference, got = example(256)
    changed = got.astype(np.int8) - reference.astype(np.int8)
    strip = np.asarray(comparison_strip(frame, truth, reference, got, changed, labels=LABELS))
    caption = strip[: caption_px(256), 4 * (256 + gap_px(256)) :].reshape(-1, 3)
    for color in (TURNED_ON, TURNED_OFF):
        assert (np.abs(caption.astype(int) - color).sum(axis=1) < 40).any()


def test_labels_match_panels() -> None:
    frame, _, reference, got = example()
    with pytest.raises(ValueError, match="zip"):
        comparison_strip(frame, None, reference, got, flips(reference, got), labels=LABELS)


def scored(n_flipped: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Frames with 4 foreground pixels, of which the backend loses the given numbers."""
    n = len(n_flipped)
    reference = np.full((n, S, S), -1.0, np.float32)
    reference[:, 0, :4] = 1.0
    got = reference.copy()
    for i, count in enumerate(n_flipped):
        got[i, 0, :count] = -1.0
    images = np.full((n, S, S, 3), 100, np.uint8)
    return images, reference, got, [f"clip_{i}" for i in range(n)]


def test_worst_frames_in_order(tmp_path: Path) -> None:
    images, reference, got, names = scored([1, 0, 3, 1, 2])
    folder = tmp_path / "new" / "pictures"
    worst = write_worst(folder, NamedFrames(images, names), reference, got, k=4)
    pixels = S * S
    assert worst == [
        WorstFrame("clip_2", 0.25, 3 / pixels, "worst_1.png"),
        WorstFrame("clip_4", 0.5, 2 / pixels, "worst_2.png"),
        WorstFrame("clip_0", 0.75, 1 / pixels, "worst_3.png"),
        WorstFrame("clip_3", 0.75, 1 / pixels, "worst_4.png"),
    ]
    assert sorted(p.name for p in folder.iterdir()) == [w.file for w in worst]
    with Image.open(folder / "worst_2.png") as strip:
        shown = panel(strip.convert("RGB"), 3)
    assert [tuple(p) == TURNED_OFF for p in shown[0, :4]] == [True, True, False, False]


def test_ties_go_to_more_flips(tmp_path: Path) -> None:
    images, reference, got, names = scored([4, 4, 4])
    got[1, 5, :2] = 1.0  # agreement 0 as the others, but six pixels flipped
    worst = write_worst(tmp_path, NamedFrames(images, names), reference, got, k=2)
    assert [(w.name, w.agreement) for w in worst] == [("clip_1", 0.0), ("clip_0", 0.0)]


def test_truth_adds_a_panel_and_few_frames_are_all_shown(tmp_path: Path) -> None:
    images, reference, got, names = scored([1, 2])
    worst = write_worst(tmp_path, NamedFrames(images, names, reference > 0), reference, got, k=9)
    assert [w.name for w in worst] == ["clip_1", "clip_0"]
    with Image.open(tmp_path / "worst_1.png") as strip:
        assert strip.width == 5 * S + 6 * gap_px(S)


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    images, reference, got, names = scored([1, 2])
    with pytest.raises(ParityError, match="shape"):
        write_worst(tmp_path, NamedFrames(images, names), reference, got[:1])
    with pytest.raises(ParityError, match="one image and name each"):
        write_worst(tmp_path, NamedFrames(images, names[:1]), reference, got)
    with pytest.raises(ParityError, match="no frames"):
        write_worst(tmp_path, NamedFrames(images[:0], []), reference[:0], got[:0])
    assert not list(tmp_path.iterdir())
