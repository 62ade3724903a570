"""AVS-Synthetic as released: single images with a mask and a sound of the same class.

SPEC 4.5: annotations.csv, images/, masks/, audios/. Test and validation rows name their sound. A
training sound is drawn from the list of its class, here as a function of (seed, index). The second
example (0.96 to 1.92 s) is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from save_deploy.data.released import Item, Listing, check_source, collect
from save_deploy.data.tables import Row, Table, read_table
from save_deploy.errors import DataError

SUBSETS = {"syn": {"train": 52_609, "val": 5_000, "test": 5_000}}
AUDIO_NAMES = "category_for_vggsound_audios.pkl"
SOURCES = ("auto", "wav")


def metadata(folder: Path, subset: str, split: str = "test") -> Path | None:
    """Return annotations.csv when the folder has it."""
    meta = folder / "annotations.csv"
    return meta if os.path.isfile(meta) else None


def has_media(folder: Path, subset: str) -> bool:
    """Return True when the folder of images exists."""
    return os.path.isdir(folder / "images")


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
    """Return one item per annotated object, with one image as its frame."""
    check_source(source, SOURCES, subset)
    table = read_table(meta)
    split_at, columns = table.column("split"), Columns.of(table)
    names = _audio_names(folder) if split == "train" else {}
    wanted = "validate" if split == "val" else split

    def make(row: Row, index: int) -> Item | None:
        if row.choice(split_at, "split", ("train", "validate", "test")) != wanted:
            return None
        if split == "train":
            class_id = row.filled(columns.cls_id, "cls_id")
            sound = draw_sound(_names_of_class(class_id, row, names), seed, index)
        else:
            sound = row.filled(columns.audio_name, "audio_name")
        instance = row.filled(columns.inst_id, "inst_id")
        image = row.filled(columns.img_id, "img_id")
        return Item(
            name=instance,
            category=row.filled(columns.cls_name, "cls_name"),
            frames=(Path(f"{folder}/images/{image}.jpg"),),
            masks=(Path(f"{folder}/masks/{instance}.png"),),
            sounds=(Path(f"{folder}/audios/{sound}.wav"),),
            meta=row.file,
            row=row.number,
            skip_examples=1,
        )

    return collect(table.rows, make, limit)


@dataclass(frozen=True)
class Columns:
    """Column indices, by name or else at their published positions."""

    inst_id: int
    img_id: int
    cls_name: int
    cls_id: int
    audio_name: int

    @classmethod
    def of(cls, table: Table) -> Columns:
        places = {"inst_id": 0, "img_id": 1, "cls_name": 4, "cls_id": 5, "audio_name": 8}
        return cls(**{name: table.at(name, place, 9) for name, place in places.items()})


def draw_sound(names: list[str], seed: int, index: int) -> str:
    """Draw one sound of a class; the same (seed, index) always draws the same one."""
    return names[int(np.random.default_rng([seed, index]).integers(len(names)))]


def _names_of_class(class_id: str, row: Row, names: dict[int, list[str]]) -> list[str]:
    if not class_id.isdecimal() or int(class_id) not in names:
        raise DataError(
            "class without sounds",
            got=f"cls_id {class_id} in {row.file}, {row.where}",
            expected=f"a class listed in {AUDIO_NAMES}",
        )
    return names[int(class_id)]


def _audio_names(folder: Path) -> dict[int, list[str]]:
    from save_deploy.data.safe_pickle import load_audio_names

    return load_audio_names(folder / AUDIO_NAMES)
