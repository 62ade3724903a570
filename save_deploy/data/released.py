"""Released datasets: items listed from metadata, with files read on access.

A family of datasets (avsbench.py, avss.py, v3.py, synthetic.py) converts metadata rows to items.
This module reads the items of all families.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from save_deploy.data.audio import EXAMPLE_SECONDS, read_waveform
from save_deploy.data.examples import EXAMPLE_STEP, filled
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.sample import Clip, Sample, Sound, make_sample
from save_deploy.data.tables import Row, row_name
from save_deploy.data.transforms import Frame, Mask, read_frame, read_mask
from save_deploy.errors import DataError

SOURCES = ("auto", "wav", "log_mel", "video")
FRAME_OFFSET_S = 15 / 16  # frame i of AVSBench was taken at i + 15/16 s (SPEC 3)


@dataclass(frozen=True)
class Item:
    """One clip as the metadata describes it: paths of its annotated frames, masks and sound.

    sounds: candidates in order: .wav, .pkl (log-mel) or .mp4.
    video: file that frames are read from; `frames` is then empty.
    skip_examples: index of the first example used (1 for AVS-Synthetic).
    """

    name: str
    category: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    sounds: tuple[Path, ...]
    meta: Path
    row: int
    video: Path | None = None
    fill: str = "repeat"
    skip_examples: int = 0

    @property
    def where(self) -> str:
        """Row and file, such as row 17 of s4_meta_data.csv."""
        return row_name(self.meta, self.row)

    @property
    def n_frames(self) -> int:
        return len(self.masks)

    def found_sound(self) -> Path | None:
        """Return the first existing sound file, or None."""
        return next((path for path in self.sounds if os.path.isfile(path)), None)


@dataclass(frozen=True)
class Listing:
    """Items of one split, and the unusable rows of the metadata file (row name -> error)."""

    items: list[Item]
    bad_rows: dict[str, DataError] = field(default_factory=dict)


class Family(Protocol):
    """Interface of a module for one family of datasets."""

    SUBSETS: dict[str, dict[str, int]]  # subset -> split -> published number of rows

    def metadata(self, folder: Path, subset: str, split: str) -> Path | None:
        """Return the metadata file of a subset in this folder, or None."""
        ...

    def has_media(self, folder: Path, subset: str) -> bool:
        """Return True when the folder of the subset's frames exists."""
        ...

    def listing(
        self,
        folder: Path,
        meta: Path,
        subset: str,
        split: str,
        *,
        source: str = "auto",
        seed: int = 0,
        limit: int | None = None,
    ) -> Listing:
        """Return the items of a split of the metadata file, at most `limit`."""
        ...


def collect(
    rows: Iterable[Row], make: Callable[[Row, int], Item | None], limit: int | None
) -> Listing:
    """Collect the items of rows, at most `limit`.

    make: called as make(row, index); returns an item, or None for a row of another split. Raises
        DataError for a bad row.
    A second row with the same masks is a bad row, because its clip would count twice.
    """
    found, seen = Listing([]), dict[tuple[Path, ...], Item]()
    for row in rows:
        if limit is not None and len(found.items) >= limit:
            break
        try:
            item = make(row, len(found.items))
            if item is None:
                continue
            if (first := seen.setdefault(item.masks, item)) is not item:
                raise DataError(
                    "name twice in one split",
                    got=f"{item.name} in {row.file}, {row.where}",
                    expected=f"one row of it; {first.where} is the first",
                )
            found.items.append(item)
        except DataError as error:
            found.bad_rows[row.where] = error
    return found


class ReleasedClips:
    """Clips of one split in the order of the metadata file. Errors name the file and the row."""

    def __init__(self, listing: Listing) -> None:
        self.items, self.bad_rows = listing.items, listing.bad_rows

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Clip:
        """Read all annotated frames of a clip and its sound."""
        item = self.items[index]
        with naming(item):
            frames = _frames(item, range(item.n_frames))
            masks = [_mask(item, k, frame) for k, frame in enumerate(frames)]
            if len({frame.shape for frame in frames}) > 1:
                raise DataError(
                    "frames differ in size", got=str(item.frames[0].parent), expected="one size"
                )
            sound = _sound(item)
        log_mel = sound.log_mel
        return Clip(
            name=item.name,
            category=item.category,
            frames=np.stack(frames),
            masks=np.stack(masks),
            waveform=sound.waveform,
            log_mel=None if log_mel is None else filled(log_mel, item.n_frames, item.fill),
            fill=item.fill,
        )

    def pairs(self) -> list[tuple[int, int]]:
        """Return (clip, frame) of every annotated frame, without opening a file."""
        return [(i, k) for i, item in enumerate(self.items) for k in range(item.n_frames)]

    def sample(self, index: int, frame: int) -> Sample:
        """Read annotated frame `frame` (0-based) of a clip and its sound. Reads no other frame."""
        item = self.items[index]
        with naming(item):
            (picture,) = _frames(item, (frame,))
            mask, sound = _mask(item, frame, picture), _sound(item)
        name = f"{item.name}_{frame + 1}"
        return make_sample(name, item.category, picture, mask, sound, frame)


@contextmanager
def naming(item: Item) -> Iterator[None]:
    """Add the metadata row to errors about an item's files."""
    try:
        yield
    except DataError as error:
        raise DataError(
            error.what,
            got=f"{error.got}, {item.where}",
            expected=error.expected,
            hint=error.hint,
        ) from error


def _frames(item: Item, wanted: Sequence[int]) -> list[Frame]:
    if item.video is None:
        return [read_frame(item.frames[k]) for k in wanted]
    from save_deploy.data.video import read_video_frames

    return read_video_frames(item.video, [k + FRAME_OFFSET_S for k in wanted])


def _mask(item: Item, k: int, frame: Frame) -> Mask:
    """Read the mask of frame k. For frames of a video it is resized to the frame."""
    mask, (height, width) = read_mask(item.masks[k]), frame.shape[:2]
    if mask.shape == (height, width):
        return mask
    if item.video is not None:
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0
    raise DataError(
        "mask and frame differ in size",
        got=f"{mask.shape} in {item.masks[k]}",
        expected=f"{(height, width)} as in {item.frames[k]}",
    )


def _sound(item: Item) -> Sound:
    path = item.found_sound()
    if path is None:
        others = " or ".join(map(str, item.sounds[1:])) or f"a {item.sounds[0].suffix} file"
        raise DataError("sound not found", got=str(item.sounds[0]), expected=others)
    if path.suffix == ".pkl":
        from save_deploy.data.safe_pickle import load_log_mel

        return Sound(np.zeros(0, np.float32), load_log_mel(path), item.fill)
    start = EXAMPLE_STEP * item.skip_examples
    shortest = start / SAMPLE_RATE_HZ + EXAMPLE_SECONDS
    if path.suffix == ".wav":
        waveform = read_waveform(path, min_seconds=shortest)
    else:
        from save_deploy.data.video import read_video_sound

        waveform = read_video_sound(path, min_seconds=shortest)
    return Sound(waveform[start:], None, item.fill)


def check_source(source: str, allowed: Sequence[str], subset: str) -> None:
    """Raise DataError for a source of frames and sound that the dataset does not have."""
    if source not in allowed:
        raise DataError(f"{subset} has no such source", got=source, expected=", ".join(allowed))
