"""Generated scenes without media files: twelve drawn shapes, each with its own timbre."""

from __future__ import annotations

import colorsys
import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from save_deploy.data.audio import Waveform
from save_deploy.data.compose import Actor, Rng, Staging, compose_clip, draw_cast, scene_rng
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.sample import Clip

_DRAW_PX = 240
SHAPES = (
    "circle", "square", "triangle", "star", "ring", "cross",
    "hexagon", "crescent", "flower", "arrow", "gear", "hourglass",
)  # fmt: skip


class Scenes:
    """Seeded scenes of drawn shapes: item i of a split is always the same clip.

    n_sources: number of sounding objects; None draws it per clip (mostly one, sometimes two or
        none).
    """

    def __init__(
        self,
        split: str = "test",
        *,
        n_clips: int = 200,
        seed: int = 0,
        n_sources: int | None = 1,
        staging: Staging | None = None,
    ) -> None:
        self.split, self.n_clips, self.seed, self.n_sources = split, n_clips, seed, n_sources
        self.staging = staging or Staging()

    def __len__(self) -> int:
        return self.n_clips

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < self.n_clips:
            raise IndexError(index)
        rng = scene_rng(self.seed, self.split, index)
        n_sources = draw_n_sources(rng, self.staging) if self.n_sources is None else self.n_sources
        n_objects = max(int(rng.integers(*self.staging.n_objects, endpoint=True)), n_sources + 1)
        cast = draw_cast(
            rng, actors(), n_sources=n_sources, n_objects=n_objects, staging=self.staging
        )
        return compose_clip(
            rng,
            name=f"scene_{self.split}_{index:05d}",
            cast=cast,
            background=_background(rng, self.staging.size_px),
            staging=self.staging,
        )


def draw_n_sources(rng: Rng, staging: Staging) -> int:
    """Draw the number of sources of a training clip by the odds of the staging."""
    odds = np.asarray(staging.source_odds) / sum(staging.source_odds)
    return int(rng.choice(len(odds), p=odds))


@cache
def actors() -> tuple[Actor, ...]:
    """Return the twelve objects, with labels 1 to 12."""
    return tuple(
        Actor(
            name=shape,
            label=i + 1,
            cutout=_cutout(shape, i),
            recording=_timbre(i),
            sound_group=shape,
        )
        for i, shape in enumerate(SHAPES)
    )


def _polar(radii: list[float], offset: float = -math.pi / 2) -> list[tuple[float, float]]:
    """Return a closed outline with these radii at equal angles, as points in px."""
    half = _DRAW_PX / 2
    angles = [offset + 2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [
        (half + 0.95 * half * r * math.cos(a), half + 0.95 * half * r * math.sin(a))
        for a, r in zip(angles, radii, strict=True)
    ]


def _outline(shape: str) -> list[tuple[float, float]]:
    px = _DRAW_PX
    fine = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    match shape:
        case "circle" | "ring" | "crescent":
            return _polar([1.0] * 90)
        case "square":
            return _polar([1.0] * 4, math.pi / 4)
        case "triangle":
            return _polar([1.0] * 3)
        case "star":
            return _polar([1.0, 0.42] * 5)
        case "hexagon":
            return _polar([0.95] * 6)
        case "flower":
            return _polar(list(0.72 + 0.26 * np.cos(5 * fine)))
        case "gear":
            return _polar(list(np.where(np.sin(9 * fine) > 0, 1.0, 0.74)))
        case "cross":
            a, b = 0.34 * px, 0.66 * px
            return [
                (a, 0),
                (b, 0),
                (b, a),
                (px, a),
                (px, b),
                (b, b),
                (b, px),
                (a, px),
                (a, b),
                (0, b),
                (0, a),
                (a, a),
            ]
        case "arrow":
            return [
                (0, 0.32 * px),
                (0.5 * px, 0.32 * px),
                (0.5 * px, 0),
                (px, px / 2),
                (0.5 * px, px),
                (0.5 * px, 0.68 * px),
                (0, 0.68 * px),
            ]
        case _:  # hourglass
            return [(0, 0), (px, 0), (0.6 * px, px / 2), (px, px), (0, px), (0.4 * px, px / 2)]


def _cutout(shape: str, index: int) -> Image.Image:
    """Draw a shape as an RGBA image with its own hue and hatching."""
    px = _DRAW_PX
    mask = Image.new("L", (px, px), 0)
    draw = ImageDraw.Draw(mask)
    draw.polygon(_outline(shape), fill=255)
    if shape == "ring":
        draw.ellipse((0.28 * px, 0.28 * px, 0.72 * px, 0.72 * px), fill=0)
    if shape == "crescent":
        draw.ellipse((0.35 * px, 0.02 * px, 1.05 * px, 0.72 * px), fill=0)
    hue = index / len(SHAPES)
    base, mark = (
        tuple(round(255 * v) for v in colorsys.hsv_to_rgb(h, s, v))
        for h, s, v in ((hue, 0.75, 0.9), ((hue + 0.08) % 1, 0.9, 0.45))
    )
    y, x = np.mgrid[0:px, 0:px]
    wave = [x + y, x, y, x - y][index % 4] if index < 8 else np.hypot(x - px / 2, y - px / 2)
    hatched = (wave // (8 + 3 * (index % 5))) % 2 == 0
    rgb = np.where(hatched[..., None], base, mark).astype(np.uint8)
    image = Image.fromarray(rgb)
    image.putalpha(mask.filter(ImageFilter.GaussianBlur(1)))
    return image


def _timbre(index: int) -> Waveform:
    """Return three seconds of a synthetic sound that is audible in every tenth of a second."""
    rng = np.random.default_rng(1000 + index)
    t = np.arange(3 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    tone = lambda hz, n=1: sum(np.sin(2 * np.pi * k * hz * t) / k for k in range(1, n + 1))
    pulse = lambda rate: np.exp(-8 * ((t * rate) % 1.0))
    chirp = lambda lo, hi, rate: np.sin(
        2 * np.pi * np.cumsum(lo + (hi - lo) * ((t * rate) % 1.0)) / SAMPLE_RATE_HZ
    )
    noise = rng.normal(size=t.size)
    voices = (
        lambda: tone(220),  # pure
        lambda: tone(130, 12),  # buzz
        lambda: chirp(300, 1800, 3),  # rising
        lambda: tone(1760) * pulse(8),  # bell
        lambda: chirp(2600, 900, 4),  # falling
        lambda: noise * pulse(6),  # clap
        lambda: np.sin(2 * np.pi * 600 * t + 8 * np.sin(2 * np.pi * 97 * t)),  # metallic
        lambda: np.convolve(noise, np.ones(24) / 24, "same"),  # rumble
        lambda: tone(440) + tone(554.4) + tone(659.3),  # chord
        lambda: tone(880, 3) * (0.55 + 0.45 * np.sin(2 * np.pi * 11 * t)),  # tremolo
        lambda: np.diff(noise, prepend=0.0),  # hiss
        lambda: tone(70, 20) * pulse(4),  # drum
    )
    voice = voices[index]()
    return (voice / np.abs(voice).max()).astype(np.float32)


def _background(rng: Rng, size_px: int) -> NDArray[np.uint8]:
    """Return smooth colored noise at two scales, uint8 (S,S,3)."""
    coarse = Image.fromarray(rng.integers(40, 216, (4, 4, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(90, 166, (32, 32, 3), dtype=np.uint8))
    a, b = (
        np.asarray(i.resize((size_px, size_px), Image.Resampling.BICUBIC), np.float32)
        for i in (coarse, fine)
    )
    return np.clip(a + 0.7 * (b - 128), 0, 255).astype(np.uint8)
