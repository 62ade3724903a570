"""Generated scenes of photographs and recordings from Debian packages.

Cut-outs and sounds are from the package tuxpaint-stamps-default, backgrounds from tuxpaint-data
(both GPL-2, neither is redistributed here). Every object has a photograph with alpha and a
recording. Scenes also contain silent objects, so the sound is needed to find the mask. Splits share
objects and recordings, but no background photo, crop, placement or sound mix. The subsets seen and
unseen share no object and no recording: a model that is trained on seen can be scored on unseen.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from save_deploy.data.audio import read_waveform
from save_deploy.data.compose import (
    Actor,
    Staging,
    audible,
    compose_clip,
    crop_background,
    draw_cast,
    scene_rng,
    varied_background,
)
from save_deploy.data.pictures import open_picture
from save_deploy.data.sample import Clip
from save_deploy.data.scenes import SHAPES, draw_n_sources
from save_deploy.errors import DataError

ENV_ROOT = "SAVE_TUXPAINT_DIR"
MIN_SIDE_PX = 48  # smaller images are icons, which would be blurred when enlarged
FIRST_LABEL = len(SHAPES) + 1  # labels of `scenes` and `stamps` are distinct
_MAX_SIDE_PX = 224
# Letters, digits and faces, which make no sound.
_SKIPPED_FOLDERS = ("symbols",)
# Objects with (nearly) the same recording or look, which are never in the same scene.
_SOUND_ALIKE = {
    "badger": "beaver",
    "mountaingoat": "goat",
    "ram": "goat",
    "scissors_small_closed": "scissors",
    "scissors_small_open": "scissors",
    "pig_golden": "pig",
    "pig_golden2": "pig",
    "sheep_lamb": "sheep",
    "dreydl-hay": "dreydl",
    "dreydl-nun": "dreydl",
    "dreydl-shin": "dreydl",
    "dreydl-gimmel": "dreydl",
    "giraffe": "iguana",
    "nandou": "iguana",
    "wombat": "iguana",
}
ALL, SEEN, UNSEEN = "", "seen", "unseen"
_HELD_OUT_EVERY = 6  # of the groups that sound alike, one in six is unseen
# A photo of a flock: a background that shows an object would be labeled wrongly.
_SKIPPED_PHOTOS = ("sheep",)


class StampScenes:
    """Scenes of photographed objects: item i of a split is always the same clip."""

    def __init__(
        self,
        split: str = "test",
        *,
        n_clips: int = 200,
        seed: int = 0,
        n_sources: int | None = 1,
        staging: Staging | None = None,
        among: str = ALL,
    ) -> None:
        """among: objects of the scenes, sounding or silent: all, seen or unseen ones."""
        self.split, self.n_clips, self.seed, self.n_sources = split, n_clips, seed, n_sources
        self.staging = staging or Staging()
        self.actors = actors(among)
        self.photos = backgrounds(split)

    def __len__(self) -> int:
        return self.n_clips

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < self.n_clips:
            raise IndexError(index)
        rng = scene_rng(self.seed, self.split, index)
        n_sources = draw_n_sources(rng, self.staging) if self.n_sources is None else self.n_sources
        n_objects = max(int(rng.integers(*self.staging.n_objects, endpoint=True)), n_sources + 1)
        photo = self.photos[int(rng.integers(len(self.photos)))]
        cast = draw_cast(
            rng, self.actors, n_sources=n_sources, n_objects=n_objects, staging=self.staging
        )
        size_px = self.staging.size_px
        return compose_clip(
            rng,
            name=f"stamp_{self.split}_{index:05d}",
            cast=cast,
            background=varied_background(rng, self.photos, size_px)
            if self.staging.varied
            else crop_background(rng, photo, size_px),
            staging=self.staging,
        )


def find_package() -> Path:
    """Return the folder with tuxpaint's `stamps` and `templates`.

    Raises DataError with the names of missing packages.
    """
    root = Path(os.environ.get(ENV_ROOT, "/usr/share/tuxpaint"))
    missing = [
        package
        for package, folder in (
            ("tuxpaint-stamps-default", "stamps/animals"),
            ("tuxpaint-data", "templates"),
        )
        if not (root / folder).is_dir()
    ]
    if missing:
        raise DataError(
            "the photographs and sounds of `stamps` are not installed",
            got=f"no {' and no '.join(missing)} under {root}",
            expected="Debian packages tuxpaint-stamps-default and tuxpaint-data",
            hint=f"apt-get install {' '.join(missing)}   (or set {ENV_ROOT})",
        )
    return root


def actors(among: str = ALL) -> tuple[Actor, ...]:
    """Return the objects with an image and a sound, ordered by path, labels from FIRST_LABEL.

    among: seen and unseen split the objects by whole groups that sound or look alike, and keep the
        labels that the objects have among all.
    Four objects of the package have a recording of zeros: nothing can find them by their sound.
    """
    found = _all_actors()
    held_out = set(sorted({actor.sound_group for actor in found})[::_HELD_OUT_EVERY])
    return tuple(
        actor
        for actor in found
        if actor.recording.any()
        and (among == ALL or (actor.sound_group in held_out) == (among == UNSEEN))
    )


@cache
def _all_actors() -> tuple[Actor, ...]:
    root = find_package() / "stamps"
    pictures = [
        path
        for path in sorted(root.rglob("*.png"))
        if path.with_suffix(".ogg").is_file()
        and path.relative_to(root).parts[0] not in _SKIPPED_FOLDERS
    ]
    found: list[Actor] = []
    for path in pictures:
        image = open_picture(path, transparency=True)
        if min(image.size) < MIN_SIDE_PX:
            continue
        cutout = image.convert("RGBA")
        cutout.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
        cutout = cutout.crop(cutout.getchannel("A").getbbox())
        if not _is_solid(cutout):
            continue
        found.append(
            Actor(
                name=path.stem,
                label=FIRST_LABEL + len(found),
                cutout=cutout,
                recording=audible(read_waveform(path.with_suffix(".ogg"))),
                sound_group=_SOUND_ALIKE.get(path.stem, path.stem),
            )
        )
    return tuple(found)


def _is_solid(cutout: Image.Image) -> bool:
    """Return True for a cut-out that is opaque (not glass) and more than a thin line."""
    alpha = np.asarray(cutout.getchannel("A"))
    opaque = np.count_nonzero(alpha > 127)
    return bool(opaque > 0.7 * np.count_nonzero(alpha > 16) and opaque > 0.25 * alpha.size)


@cache
def backgrounds(split: str) -> tuple[Image.Image, ...]:
    """Return the background photos of one split: 3 of 5 are for train, 1 for val, 1 for test."""
    photos = sorted((find_package() / "templates").glob("*.jp*g"))
    photos = [p for p in photos if p.stem not in _SKIPPED_PHOTOS]
    share = {0: "train", 1: "train", 2: "train", 3: "val", 4: "test"}
    chosen = [p for i, p in enumerate(photos) if share[i % 5] == split]
    if not chosen:
        raise DataError(
            "too few background photos", got=f"{len(photos)} in all", expected="5 or more"
        )
    return tuple(open_picture(path).convert("RGB") for path in chosen)
