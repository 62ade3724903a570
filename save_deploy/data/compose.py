"""Composition of audio-visual scenes from cut-outs, each with a sound.

The mask covers the sounding cut-outs. Used by `scenes` (drawn objects) and `stamps` (photographs).
All content is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from save_deploy.data.audio import Waveform
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.sample import Clip

Rng = np.random.Generator
CLIP_SECONDS = 5
SPLITS = ("train", "val", "test")
VERSION = 2  # of the generated data: a seed and an index give another clip in another version


@dataclass(frozen=True)
class Actor:
    """An object of a scene.

    cutout: RGBA image.
    recording: (n,), 16 kHz mono, audible throughout.
    label: unique, >= 1.
    sound_group: actors of one group sound alike and are never in the same scene.
    """

    name: str
    label: int
    cutout: Image.Image
    recording: Waveform
    sound_group: str


@dataclass(frozen=True)
class Staging:
    """Sizes and counts of a scene. `scale` is a fraction of the frame side."""

    size_px: int = 256
    n_objects: tuple[int, int] = (2, 4)
    scale: tuple[float, float] = (0.28, 0.5)
    n_frames: int = CLIP_SECONDS
    # share of training clips with 0 (room noise, or a sound out of view), 1 and 2 sources
    source_odds: tuple[float, ...] = (0.08, 0.78, 0.14)
    # share of clips with one more sound, of an object out of view
    out_of_view: float = 0.0
    # backgrounds of `stamps` blended from two photos, in other colors
    varied: bool = False


@dataclass(frozen=True)
class _Placed:
    rgba: NDArray[np.uint8]  # (h,w,4)
    center: NDArray[np.float64]  # (x,y) px at frame 0
    velocity: NDArray[np.float64]  # px per frame
    label: int


def scene_rng(seed: int, split: str, index: int) -> Rng:
    """Return a random generator that is independent for every (seed, split, index)."""
    return np.random.default_rng([seed, SPLITS.index(split), index])


def choose_actors(rng: Rng, actors: Sequence[Actor], n: int) -> list[Actor]:
    """Return n random actors of different sound groups."""
    chosen: list[Actor] = []
    for i in rng.permutation(len(actors)):
        if actors[i].sound_group not in {a.sound_group for a in chosen}:
            chosen.append(actors[i])
        if len(chosen) == n:
            break
    return chosen


@dataclass(frozen=True)
class Cast:
    """The actors of a clip: the sources, silent objects, and what only sounds, out of view."""

    sources: list[Actor]
    silent: list[Actor]
    out_of_view: list[Actor]


def draw_cast(
    rng: Rng, actors: Sequence[Actor], *, n_sources: int, n_objects: int, staging: Staging
) -> Cast:
    """Draw n_objects actors in view, the first n_sources of them sounding, and maybe one more."""
    chosen = choose_actors(rng, actors, n_objects + 1)
    more = bool(staging.out_of_view) and rng.random() < staging.out_of_view
    return Cast(
        sources=chosen[:n_sources],
        silent=chosen[n_sources:n_objects],
        out_of_view=chosen[n_objects:] if more else [],
    )


def compose_clip(
    rng: Rng, *, name: str, cast: Cast, background: NDArray[np.uint8], staging: Staging
) -> Clip:
    """Draw the cast in view on a background and mix its sounds.

    background: uint8 (S,S,3).
    Without sources the masks are empty; without any sound there is room noise.
    Every source is at least half visible in every frame.
    """
    visible, heard = [*cast.sources, *cast.silent], [*cast.sources, *cast.out_of_view]
    sounding = tuple(actor.label for actor in heard)
    while True:
        placed = [_place(rng, actor, staging) for actor in visible]
        placed = _spread(rng, placed, staging.size_px)
        order = rng.permutation(len(placed))
        drawn = [_draw(background, [placed[i] for i in order], t) for t in range(staging.n_frames)]
        if all(_visible(drawn, placed[i], staging) for i in range(len(cast.sources))):
            break
    labels = np.stack([label for _, label in drawn])  # (F,S,S)
    return Clip(
        name=name,
        category="_".join(actor.name for actor in cast.sources) or "silence",
        frames=np.stack([frame for frame, _ in drawn]),
        masks=np.isin(labels, sounding) if sounding else np.zeros(labels.shape, bool),
        waveform=mix_sounds(rng, [actor.recording for actor in heard], staging.n_frames),
        labels=labels,
        sounding=sounding,
    )


def mix_sounds(rng: Rng, recordings: Sequence[Waveform], seconds: int) -> Waveform:
    """Mix the recordings with room noise.

    Each is looped from a random start at a random speed and level.
    """
    n = seconds * SAMPLE_RATE_HZ
    mix = rng.normal(0.0, 10 ** rng.uniform(-4.0, -2.7), n)
    for recording in recordings:
        speed = rng.uniform(0.94, 1.06)
        loop_size = int(np.ceil((recording.size - 1) / speed))
        start = int(rng.integers(loop_size))
        positions = (start + np.arange(n)) % loop_size * speed
        voice = np.interp(positions, np.arange(recording.size), recording)
        rms = np.sqrt(np.mean(voice**2)) + 1e-9
        mix += voice / rms * 10 ** (rng.uniform(-26.0, -14.0) / 20)
    return np.clip(mix, -1.0, 1.0).astype(np.float32)


def audible(recording: Waveform, hop: int = 800) -> Waveform:
    """Return the recording without silent parts (50 ms pieces below 5 % of the loudest)."""
    pieces = [recording[i : i + hop] for i in range(0, max(recording.size - hop, 1), hop)]
    levels = np.array([np.sqrt(np.mean(p**2)) for p in pieces])
    kept = [p for p, level in zip(pieces, levels, strict=True) if level > 0.05 * levels.max()]
    return np.concatenate(kept) if kept else recording


def crop_background(rng: Rng, photo: Image.Image, size_px: int) -> NDArray[np.uint8]:
    """Return a random square crop (45-100 % of the short side), uint8 (S,S,3), maybe mirrored."""
    side = int(min(photo.size) * rng.uniform(0.45, 1.0))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    crop = photo.crop((left, top, left + side, top + side)).resize((size_px, size_px))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(_light(rng, crop).convert("RGB"))


def varied_background(rng: Rng, photos: Sequence[Image.Image], size_px: int) -> NDArray[np.uint8]:
    """Return a background that few photos give in many forms, uint8 (S,S,3).

    Two crops (20-100 % of the short side), turned by quarters and with other hues, are blended
    patch by patch.
    """
    one, other = (
        _turned_crop(rng, photos[int(rng.integers(len(photos)))], size_px) for _ in range(2)
    )
    cells = int(rng.integers(1, 6))
    share = (
        rng.uniform(-0.5, 1.5, (cells, cells)).clip(0, 1) * 255
    )  # beyond 0 and 1: one crop alone
    patches = Image.fromarray(share.astype(np.uint8)).resize((size_px, size_px))
    mixed = Image.composite(one, other, patches)
    if rng.random() < 0.2:
        mixed = mixed.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3.0)))
    return np.asarray(ImageEnhance.Contrast(mixed).enhance(rng.uniform(0.5, 1.5)))


def _turned_crop(rng: Rng, photo: Image.Image, size_px: int) -> Image.Image:
    side = int(min(photo.size) * rng.uniform(0.2, 1.0))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    crop = photo.resize((size_px, size_px), box=(left, top, left + side, top + side))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.3:
        crop = crop.rotate(90 * int(rng.integers(1, 4)))
    if rng.random() < 0.5:
        hue, saturation, value = crop.convert("HSV").split()
        turn = int(rng.integers(256))
        hue = hue.point([(level + turn) % 256 for level in range(256)])
        crop = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return _light(rng, crop)


def _place(rng: Rng, actor: Actor, staging: Staging) -> _Placed:
    """Scale, mirror, rotate and light a cut-out at random."""
    cutout = actor.cutout
    side = rng.uniform(*staging.scale) * staging.size_px
    factor = side / np.sqrt(cutout.width * cutout.height)  # same area for every aspect ratio
    factor = min(factor, 0.85 * staging.size_px / max(cutout.size))
    size = (max(8, round(cutout.width * factor)), max(8, round(cutout.height * factor)))
    cutout = cutout.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cutout = cutout.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, expand=True)
    alpha = cutout.getchannel("A")
    lit = _light(rng, cutout.convert("RGB"))
    lit.putalpha(alpha)
    return _Placed(
        rgba=np.asarray(lit),
        center=np.zeros(2),
        velocity=rng.normal(0.0, 0.015 * staging.size_px, 2),
        label=actor.label,
    )


def _light(rng: Rng, image: Image.Image) -> Image.Image:
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.25))
    return ImageEnhance.Color(image).enhance(rng.uniform(0.7, 1.3))


def _spread(rng: Rng, placed: list[_Placed], size_px: int) -> list[_Placed]:
    """Choose positions with little overlap: the best of 24 random layouts."""
    halves = np.array([p.rgba.shape[1::-1] for p in placed]) / 2  # (n,2) = (x,y)
    low, high = halves * 0.8, size_px - halves * 0.8
    best, best_overlap = np.full_like(halves, size_px / 2), np.inf
    for _ in range(24):
        centers = rng.uniform(np.minimum(low, high), np.maximum(low, high))
        gap = np.abs(centers[:, None] - centers[None]) - (halves[:, None] + halves[None])  # (n,n,2)
        overlap = np.triu(np.prod(np.maximum(-gap, 0.0), axis=-1), k=1).sum()
        if overlap < best_overlap:
            best, best_overlap = centers, overlap
    return [
        _Placed(rgba=p.rgba, center=c, velocity=p.velocity, label=p.label)
        for p, c in zip(placed, best, strict=True)
    ]


def _window(placed: _Placed, t: int, size_px: int) -> tuple[slice, slice, slice, slice]:
    """Return rows and columns in the frame and in the cut-out, after t frames of motion."""
    height, width = placed.rgba.shape[:2]
    left, top = np.round(placed.center + t * placed.velocity - (width / 2, height / 2)).astype(int)
    rows = slice(max(top, 0), min(top + height, size_px))
    cols = slice(max(left, 0), min(left + width, size_px))
    return (
        rows,
        cols,
        slice(rows.start - top, rows.stop - top),
        slice(cols.start - left, cols.stop - left),
    )


def _draw(
    background: NDArray[np.uint8], placed: Sequence[_Placed], t: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Return the frame uint8 (S,S,3) and the label of the visible object per pixel, int16 (S,S)."""
    frame = background.astype(np.float32)
    labels = np.zeros(background.shape[:2], np.int16)
    for p in placed:
        rows, cols, src_rows, src_cols = _window(p, t, background.shape[0])
        if rows.stop <= rows.start or cols.stop <= cols.start:
            continue
        rgba = p.rgba[src_rows, src_cols].astype(np.float32)
        alpha = rgba[..., 3:] / 255.0
        frame[rows, cols] = alpha * rgba[..., :3] + (1 - alpha) * frame[rows, cols]
        labels[rows, cols][alpha[..., 0] > 0.5] = p.label
    return np.round(frame).astype(np.uint8), labels


def _visible(
    drawn: list[tuple[NDArray[np.uint8], NDArray[np.int16]]], placed: _Placed, staging: Staging
) -> bool:
    area = np.count_nonzero(placed.rgba[..., 3] > 127)
    return all(np.count_nonzero(labels == placed.label) > 0.5 * area for _, labels in drawn)
