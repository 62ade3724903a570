"""Checks of a dataset folder: row counts, files of each row, disjoint splits."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from save_deploy.data.find import SUBSETS, Place, parse_name, resolve, subsets_in
from save_deploy.data.open import list_released
from save_deploy.data.released import Item, Listing, ReleasedClips
from save_deploy.errors import DataError


@dataclass(frozen=True)
class Problem:
    """A fault, its file, and the metadata row that lists the file ("" for none)."""

    what: str
    file: str
    row: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.file}" + (f", {self.row}" if self.row else "")


@dataclass(frozen=True)
class Found:
    """Number of existing files among those that the metadata lists."""

    found: int
    expected: int

    def __str__(self) -> str:
        return f"{self.found} of {self.expected}"


@dataclass(frozen=True)
class SplitCheck:
    """Check of one split of one subset.

    rows: number of usable rows; fewer than `published` is not a fault.
    """

    subset: str
    split: str
    metadata: str
    rows: int
    published: int
    frames: Found
    masks: Found
    sounds: Found
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class DatasetCheck:
    """Checks of all subsets. absent: subsets in the metadata without a media folder."""

    folder: str
    splits: tuple[SplitCheck, ...]
    absent: tuple[str, ...]
    duplicates: tuple[Problem, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All faults without duplicates.

        A bad row of a file that lists all splits is found in every split.
        """
        found = [p for split in self.splits for p in split.problems]
        return tuple(dict.fromkeys([*found, *self.duplicates]))

    @property
    def complete(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        problems = [dataclasses.asdict(problem) for problem in self.problems]
        return dataclasses.asdict(self) | {"complete": self.complete, "problems": problems}


def check_dataset(
    name: str, *, deep: bool = False, on_item: Callable[[], object] = lambda: None
) -> DatasetCheck:
    """Check every subset of DIR, or one subset of DIR:subset.

    Existence of all files is checked. The first clip of each split is read; with `deep`, every
    clip.
    on_item: called once per clip.
    Raises DataError when the folder has no dataset, or no media of the datasets it lists.
    """
    folder, subset = parse_name(name)
    places, absent = _places(folder) if subset is None else ([resolve(name)], [])
    splits: list[SplitCheck] = []
    duplicates: list[Problem] = []
    for place in places:
        names: dict[str, list[tuple[str, Item]]] = defaultdict(list)
        start = len(splits)
        for split in _splits(place):
            checked, items = _check_split(place, split, deep=deep, on_item=on_item)
            splits.append(checked)
            for item in items:
                names[item.name].append((split, item))
        duplicates += _duplicates(names)
        if not names and not any(split.problems for split in splits[start:]):
            nothing = Problem("no clip of this subset in any split", splits[-1].metadata)
            splits[-1] = dataclasses.replace(splits[-1], problems=(nothing,))
    return DatasetCheck(str(folder), tuple(splits), tuple(absent), tuple(duplicates))


def _places(folder: Path) -> tuple[list[Place], list[str]]:
    """Return subsets with media, and names of those without, except `avss`, the union of three."""
    keys = [key for key in subsets_in(folder) if key != "avss"]
    if not keys:
        resolve(str(folder))  # raises: no dataset in this folder
    present = [key for key in keys if SUBSETS[key].has_media(folder, key)]
    if not present:
        raise DataError(
            "metadata without media", got=f"{', '.join(keys)} in {folder}", expected="media folders"
        )
    return [Place(folder, key) for key in present], [k for k in keys if k not in present]


def _splits(place: Place) -> Iterator[str]:
    return (split for split in place.splits if place.metadata(split) is not None)


def _check_split(
    place: Place, split: str, *, deep: bool, on_item: Callable[[], object]
) -> tuple[SplitCheck, list[Item]]:
    problems: list[Problem] = []
    try:
        clips = list_released(place, split)
    except DataError as error:  # the whole metadata file is unusable
        clips, problems = ReleasedClips(Listing([])), [Problem(error.what, error.got)]
    for where, bad in clips.bad_rows.items():
        problems.append(Problem(bad.what, bad.got.removesuffix(f", {where}"), where))
    counts = {"frame": 0, "mask": 0, "sound": 0}
    for i, item in enumerate(clips.items):
        missing = _missing(item, counts)
        problems += missing
        if not missing and (deep or i == 0):
            problems += _unreadable(clips, i)
        on_item()
    n_masks = sum(item.n_frames for item in clips.items)
    checked = SplitCheck(
        subset=place.subset,
        split=split,
        metadata=str(place.metadata(split)),
        rows=len(clips),
        published=place.family.SUBSETS[place.subset][split],
        frames=Found(counts["frame"], n_masks),
        masks=Found(counts["mask"], n_masks),
        sounds=Found(counts["sound"], len(clips)),
        problems=tuple(problems),
    )
    return checked, clips.items


def _missing(item: Item, counts: dict[str, int]) -> list[Problem]:
    """Return the missing files of a clip, and count the existing ones in `counts`."""
    problems = []
    files = [("frame", path) for path in item.frames] + [("mask", path) for path in item.masks]
    for what, path in files:
        if os.path.isfile(path):  # also False for an invalid file name
            counts[what] += 1
        else:
            problems.append(Problem(f"missing {what}", str(path), item.where))
    if item.found_sound() is not None:
        counts["sound"] += 1
    else:
        problems.append(Problem("missing sound", str(item.sounds[0]), item.where))
    return problems


def _unreadable(clips: ReleasedClips, index: int) -> list[Problem]:
    """Return the first error of reading a clip: unreadable file, differing sizes, short sound."""
    item = clips.items[index]
    try:
        clips[index].log_mels()
    except DataError as error:
        return [Problem(error.what, error.got.removesuffix(f", {item.where}"), item.where)]
    return []


def _duplicates(names: dict[str, list[tuple[str, Item]]]) -> list[Problem]:
    """Return names that are in two splits, which would test a model on its training data."""
    problems = []
    for name, uses in names.items():
        if len({split for split, _ in uses}) > 1:
            where = " and ".join(f"{split} ({item.where})" for split, item in uses)
            problems.append(Problem("name in two splits", name, where))
    return problems
