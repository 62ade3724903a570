"""AVSS (AVSBench-semantic) as released: metadata.csv, and one folder per clip in v1s/, v1m/, v2/.

Layout is in SPEC 4.3: JPEG frames of native size numbered from 0, 5 of them in v1s and v1m, 10 in
v2. Masks are binary here (A18): every class color of labels_rgb is foreground.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from save_deploy.data.released import Item, Listing, check_source, collect
from save_deploy.data.tables import Row, Table, read_table

SUBSETS = {
    "v2": {"train": 4750, "val": 500, "test": 750},
    "v1s": {"train": 3452, "val": 740, "test": 740},
    "v1m": {"train": 296, "val": 64, "test": 64},
    "avss": {"train": 8498, "val": 1304, "test": 1554},  # all three
}
N_FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}
SOURCES = ("auto", "wav")


def metadata(folder: Path, subset: str, split: str = "test") -> Path | None:
    """Return metadata.csv when the folder has it."""
    meta = folder / "metadata.csv"
    return meta if os.path.isfile(meta) else None


def has_media(folder: Path, subset: str) -> bool:
    """Return True when a folder of the subset's media exists."""
    return any(os.path.isdir(folder / label) for label in _labels(subset))


def listing(
    folder: Path,
    meta: Path,
    subset: str,
    split: str,
    *,
    source: str = "auto",
    seed: int = 0,
    limit: int | None = None,
) -> Listing:
    """Return the clips of a split whose `label` column is the subset; avss has all labels."""
    check_source(source, SOURCES, subset)
    table, labels = read_table(meta), _labels(subset)
    split_at, columns = table.column("split"), Columns.of(table)

    def make(row: Row, index: int) -> Item | None:
        wanted = known_label(row, columns) in labels
        if not wanted or row.choice(split_at, "split", SUBSETS[subset]) != split:
            return None
        return clip_item(folder, row, columns, first_only=split == "train")

    return collect(table.rows, make, limit)


@dataclass(frozen=True)
class Columns:
    """Column indices."""

    uid: int
    a_obj: int
    label: int

    @classmethod
    def of(cls, table: Table) -> Columns:
        return cls(table.column("uid"), table.column("a_obj"), table.column("label"))


def clip_item(
    folder: Path,
    row: Row,
    columns: Columns,
    *,
    first_only: bool,
    categories: dict[str, str] | None = None,
) -> Item:
    """Return the clip of a row.

    first_only: only mask 0 of v1s clips, as in the training split.
    categories: uid -> a_obj for files with a blank a_obj.
    Raises DataError for a bad row.
    """
    uid, label = row.filled(columns.uid, "uid"), known_label(row, columns)
    objects = row.cell(columns.a_obj, "a_obj") or (categories or {}).get(uid) or ""
    if not objects:
        row.filled(columns.a_obj, "a_obj")  # raises
    place = f"{folder}/{label}/{uid}"
    numbers = range(1 if label == "v1s" and first_only else N_FRAMES[label])
    return Item(
        name=uid,
        category=category_of(objects),
        frames=tuple(Path(f"{place}/frames/{i}.jpg") for i in numbers),
        masks=tuple(Path(f"{place}/labels_rgb/{i}.png") for i in numbers),
        sounds=(Path(f"{place}/audio.wav"),),
        meta=row.file,
        row=row.number,
        fill="zeros",
    )


def known_label(row: Row, columns: Columns) -> str:
    """Return v1s, v1m or v2, the folder of the clip."""
    return row.choice(columns.label, "label", N_FRAMES)


def category_of(a_obj: str) -> str:
    """Return the classes joined by `_`, without blanks: one row has 'h orse'. Names contain `-`."""
    return "".join(a_obj.split())


def _labels(subset: str) -> tuple[str, ...]:
    return tuple(N_FRAMES) if subset == "avss" else (subset,)
