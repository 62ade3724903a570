"""PNG images of the frames where a backend's masks differ from the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from save_deploy.errors import ParityError
from save_deploy.files import new_file
from save_deploy.metrics.margin import flips as flips_of
from save_deploy.metrics.parity import parity

Color = tuple[int, int, int]
# told apart with any color vision, on bright and on dimmed frames
MASK: Color = (255, 60, 170)
TURNED_ON: Color = (255, 159, 0)
TURNED_OFF: Color = (60, 165, 255)
_TEXT: Color = (30, 30, 30)
_WHITE: Color = (255, 255, 255)
_OPACITY = 0.55
_GRAY, _DIMMED = 0.8, 0.35  # brightness of the frame under masks and under flips
_MIN_FONT_PX = 10


@dataclass(frozen=True)
class NamedFrames:
    """N images uint8 (N,S,S,3), N names, and the true masks bool (N,S,S) if known."""

    images: NDArray[np.uint8]
    names: Sequence[str]
    truth: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class WorstFrame:
    """One written frame: IoU of the two masks (1 when both are empty), share of flipped pixels.

    file: name in the folder.
    """

    name: str
    agreement: float
    flipped: float
    file: str


def overlay(frame: NDArray[np.uint8], mask: NDArray[np.bool_], color: Color) -> NDArray[np.uint8]:
    """Return frame (H,W,3) with mask (H,W) tinted in a color, as a new uint8 array (H,W,3)."""
    tinted = frame * (1 - _OPACITY) + _OPACITY * np.array(color)
    return np.where(mask[..., None], np.rint(tinted), frame).astype(np.uint8)


def flip_panel(frame: NDArray[np.uint8], flips: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return the frame (H,W,3) gray and dimmed, with flipped pixels (H,W) in full color."""
    panel = _gray(frame, _DIMMED)
    panel[flips > 0], panel[flips < 0] = TURNED_ON, TURNED_OFF
    return panel


def _gray(frame: NDArray[np.uint8], brightness: float) -> NDArray[np.uint8]:
    """Return the frame in gray, so that no object looks like a mask."""
    mean = np.rint(frame.mean(axis=-1, keepdims=True) * brightness).astype(np.uint8)
    return np.repeat(mean, 3, axis=-1)


def comparison_strip(
    frame: NDArray[np.uint8],
    truth: NDArray[np.bool_] | None,
    reference: NDArray[np.bool_],
    got: NDArray[np.bool_],
    flips: NDArray[np.int8],
    *,
    labels: tuple[str, ...],
) -> Image.Image:
    """Return panels side by side: frame, truth, reference, backend, flips.

    frame: (H,W,3).
    truth, reference, got, flips: (H,W). Masks are drawn over the gray frame.
    labels: one caption per panel; without truth there are four. The last caption also counts the
        pixels flipped on and off, in their colors.
    """
    masks = [reference, got] if truth is None else [truth, reference, got]
    gray = _gray(frame, _GRAY)
    panels = [frame, *(overlay(gray, mask, MASK) for mask in masks), flip_panel(frame, flips)]
    height, width = frame.shape[:2]
    gap, font_px = gap_px(width), max(_MIN_FONT_PX, width // 20)
    top = caption_px(width)
    strip = Image.new(
        "RGB", (len(panels) * (width + gap) - gap + 2 * gap, top + height + gap), _WHITE
    )
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=font_px)
    last = len(panels) - 1
    for i, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        left = gap + i * (width + gap)
        strip.paste(Image.fromarray(panel), (left, top))
        words = [(label, _TEXT)]
        if i == last:
            words += [(f"+{(flips > 0).sum()}", TURNED_ON), (f"-{(flips < 0).sum()}", TURNED_OFF)]
        _caption(draw, (left, top), words, width, font)
    return strip


def gap_px(width: int) -> int:
    """Return the gap between and around panels of this width."""
    return max(2, width // 64)


def caption_px(width: int) -> int:
    """Return the height of the captions above panels of this width."""
    return max(_MIN_FONT_PX, width // 20) * 8 // 5


def _caption(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    words: Sequence[tuple[str, Color]],
    width: int,
    font: Any,
) -> None:
    """Draw colored words above the panel at `corner`, cut to its width."""
    left, end = corner[0], corner[0] + width
    for word, color in words:
        while word and left + draw.textlength(word, font) > end:
            word = word[:-1]
        draw.text((left, corner[1] * 4 // 5), word, fill=color, font=font, anchor="ls")
        left += int(draw.textlength(word + " ", font))


def write_worst(
    folder: Path,
    frames: NamedFrames,
    reference: NDArray[np.floating],
    got: NDArray[np.floating],
    *,
    k: int = 4,
    labels: tuple[str, str] = ("eager", "backend"),
) -> list[WorstFrame]:
    """Write worst_1.png .. worst_k.png of the frames with the lowest agreement, lowest first.

    reference, got: logits (N,S,S) of the reference and of the backend.
    labels: their names.
    Ties go to the frame with more flipped pixels, then to the earlier one. All frames are written
    when there are fewer than k. Raises ParityError for unequal shapes, no frame, and logits that
    are not finite.
    """
    changed, images, names = flips_of(reference, got), frames.images, frames.names
    if not len(names) == len(images) == len(reference) > 0:
        raise ParityError(
            "no frames to show, or not one image and name each",
            got=f"{len(images)} images, {len(names)} names, {len(reference)} masks",
            expected="the same number of each, at least one",
        )
    results = [parity(reference[i : i + 1], got[i : i + 1]) for i in range(len(reference))]
    order = sorted(
        range(len(results)), key=lambda i: (results[i].mask_agreement, -results[i].flipped, i)
    )
    masks = labels if frames.truth is None else ("truth", *labels)
    folder.mkdir(parents=True, exist_ok=True)
    worst = []
    for rank, i in enumerate(order[:k], start=1):
        result, name = results[i], names[i]
        strip = comparison_strip(
            images[i],
            None if frames.truth is None else frames.truth[i],
            reference[i] > 0,
            got[i] > 0,
            changed[i],
            labels=(name, *masks, "flips"),
        )
        file = f"worst_{rank}.png"
        _save(strip, folder / file)
        worst.append(WorstFrame(name, result.mask_agreement, result.flipped, file))
    return worst


def _save(picture: Image.Image, path: Path) -> None:
    with new_file(path, what="the picture") as partial:
        picture.save(partial, format="PNG", optimize=True)
