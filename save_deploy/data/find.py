"""Detection of the dataset in a folder: `DIR:subset`, or by its metadata file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from save_deploy.data import avsbench, avss, synthetic, v3
from save_deploy.data.released import Family
from save_deploy.errors import DataError
from save_deploy.fields import check_word

FAMILIES = cast(tuple[Family, ...], (avsbench, avss, v3, synthetic))
SUBSETS: dict[str, Family] = {subset: family for family in FAMILIES for subset in family.SUBSETS}
DETECTED = ("s4", "ms3", "v2", "syn")  # subsets that a folder without a suffix can be
MAX_DEPTH = 3
# media folders: they contain thousands of folders and no metadata file
SKIPPED = {"v1s", "v1m", "v2", "s4_data", "ms3_data", "images", "masks", "audios"}


@dataclass(frozen=True)
class Place:
    """A subset in a folder."""

    folder: Path
    subset: str

    @property
    def family(self) -> Family:
        return SUBSETS[self.subset]

    @property
    def name(self) -> str:
        """Name for open_dataset, such as DIR:v2."""
        return f"{self.folder}:{self.subset}"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.family.SUBSETS[self.subset])

    def metadata(self, split: str) -> Path | None:
        return self.family.metadata(self.folder, self.subset, split)

    @property
    def has_metadata(self) -> bool:
        return any(self.metadata(split) for split in self.splits)


def parse_name(name: str) -> tuple[Path, str | None]:
    """Return folder and subset (None if not given) of DIR or DIR:subset.

    Raises DataError for an unknown subset.
    """
    base, _, suffix = name.rpartition(":")
    if base and suffix in SUBSETS:
        return Path(base), suffix
    if base and os.path.isdir(base) and not os.path.exists(name):
        raise DataError("unknown subset", got=name, expected=", ".join(SUBSETS))
    return Path(name), None


def resolve(name: str) -> Place:
    """Return the subset that DIR or DIR:subset means.

    Raises DataError when there is none, or more than one.
    """
    folder, subset = parse_name(name)
    if subset is not None:
        place = Place(folder, subset)
        if not place.has_metadata:
            raise DataError(
                "subset not in this folder", got=name, expected=f"{_wanted(place)} in {folder}"
            )
        return place
    found = subsets_in(folder)
    choices = [key for key in found if key in DETECTED] or found
    if len(choices) > 1:
        raise DataError(
            "several datasets in this folder",
            got=str(folder),
            expected="one of " + ", ".join(f"{folder}:{key}" for key in choices),
        )
    if not choices:
        raise DataError(
            "no dataset in this folder",
            got=str(folder),
            expected="s4_meta_data.csv, ms3_meta_data.csv, metadata.csv or annotations.csv in it",
            hint="save-deploy data stamps -o DIR   writes one, or use --data scenes",
        )
    return Place(folder, choices[0])


def subsets_in(folder: Path) -> list[str]:
    """Return the subsets whose metadata files are in the folder."""
    return [key for key in SUBSETS if Place(folder, key).has_metadata]


def find_dataset(root: Path, key: str) -> str:
    """Search root, three folders deep, for a subset with media; return its name for open_dataset.

    Raises DataError with the files that were searched for, and metadata found without media.
    """
    check_word("subset", key, SUBSETS, DataError)
    without_media = []
    for folder in _folders(root):
        place = Place(folder, key)
        if not place.has_metadata:
            continue
        if place.family.has_media(folder, key):
            return place.name
        without_media.append(str(folder))
    near = f"; metadata without media in {', '.join(without_media)}" if without_media else ""
    raise DataError(
        f"dataset {key} not found",
        got=f"{root}{near}",
        expected=f"{_wanted(Place(root, key))} with its media, at most {MAX_DEPTH} folders deep",
    )


def _folders(root: Path) -> Iterator[Path]:
    """Yield root and its folders, breadth-first, MAX_DEPTH deep."""
    level = [root]
    for _ in range(MAX_DEPTH + 1):
        yield from level
        level = [inner for folder in level for inner in _inner(folder)]


def _inner(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name not in SKIPPED and e.is_dir()]
    except OSError:  # unreadable, or not a folder
        return []
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _wanted(place: Place) -> str:
    """Return the names of the metadata files of the subset, for a message."""
    if place.subset in avsbench.SUBSETS:
        return f"{place.subset}_meta_data.csv"
    if place.subset in v3.SUBSETS:
        return " or ".join(v3.file_name(place.subset, split) for split in place.splits)
    return "annotations.csv" if place.subset in synthetic.SUBSETS else "metadata.csv"
