"""AVSBench subsets S4 (Single-source) and MS3 (Multi-sources), as released.

Layouts are in SPEC 4.1 and 4.2: PNG frames and masks of 224 px, numbered from 1; sound as wav, as
log-mel pickle, or in the raw video. S4 training clips have only their first frame annotated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from save_deploy.data.released import SOURCES, Item, Listing, check_source, collect
from save_deploy.data.tables import Row, Table, read_table

SUBSETS = {
    "s4": {"train": 3452, "val": 740, "test": 740},
    "ms3": {"train": 296, "val": 64, "test": 64},
}
FOLDERS = {"s4": "Single-source", "ms3": "Multi-sources"}
N_FRAMES = 5
SOUND_FOLDERS = {  # source -> folder, suffix
    "wav": ("audio_wav", ".wav"),
    "log_mel": ("audio_log_mel", ".pkl"),
    "video": ("raw_videos", ".mp4"),
}


def metadata(folder: Path, subset: str, split: str = "test") -> Path | None:
    """Return the metadata file, in this folder or in its folder Single-source/ (Multi-sources/)."""
    for base in (folder, folder / FOLDERS[subset]):
        meta = base / f"{subset}_meta_data.csv"
        if os.path.isfile(meta):
            return meta
    return None


def has_media(folder: Path, subset: str) -> bool:
    """Return True when the folder of the subset's media exists."""
    meta = metadata(folder, subset)
    return meta is not None and os.path.isdir(meta.parent / f"{subset}_data")


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
    """Return the clips of a split.

    source: auto (wav, else log-mel, else the video's sound), wav, log_mel, or video, which reads
        the frames from the video too.
    """
    check_source(source, SOURCES, subset)
    table, data = read_table(meta), meta.parent / f"{subset}_data"
    columns = Columns.of(table, subset)

    def item(row: Row, index: int) -> Item | None:
        if row.choice(columns.split, "split", SUBSETS[subset]) != split:
            return None
        make = _s4_item if subset == "s4" else _ms3_item
        return make(row, columns, split, data, source)

    return collect(table.rows, item, limit)


@dataclass(frozen=True)
class Columns:
    """Column indices, by name or else at the positions where AVSBench's own code reads them."""

    name: int
    split: int
    category: int

    @classmethod
    def of(cls, table: Table, subset: str) -> Columns:
        width = 4 if subset == "s4" else 2
        split = table.column("split")
        return cls(table.at("name", 0, width), split, table.at("category", 2, width))


def _s4_item(row: Row, columns: Columns, split: str, data: Path, source: str) -> Item:
    name, category = row.filled(columns.name, "name"), row.filled(columns.category, "category")
    place = f"{split}/{category}"
    return _item(
        row,
        name,
        category,
        frames=f"{data}/visual_frames/{place}/{name}/{name}",
        masks=f"{data}/gt_masks/{place}/{name}/{name}",
        sounds={kind: f"{data}/{at}/{place}/{name}{end}" for kind, (at, end) in _sounds()},
        n_frames=1 if split == "train" else N_FRAMES,
        source=source,
    )


def _ms3_item(row: Row, columns: Columns, split: str, data: Path, source: str) -> Item:
    name = row.filled(columns.name, "name")
    sounds = {kind: f"{data}/{at}/{split}/{name}{end}" for kind, (at, end) in _sounds()}
    sounds["video"] = f"{data}/raw_videos/{name}.mp4"  # no folder per split, like frames
    return _item(
        row,
        name,
        "multi",
        frames=f"{data}/visual_frames/{name}/{name}.mp4",  # PNG names contain .mp4
        masks=f"{data}/gt_masks/{split}/{name}/{name}",
        sounds=sounds,
        n_frames=N_FRAMES,
        source=source,
    )


def _sounds() -> list[tuple[str, tuple[str, str]]]:
    return list(SOUND_FOLDERS.items())


def _item(
    row: Row,
    name: str,
    category: str,
    *,
    frames: str,
    masks: str,
    sounds: dict[str, str],
    n_frames: int,
    source: str,
) -> Item:
    numbers = range(1, n_frames + 1)
    kinds = list(SOUND_FOLDERS) if source == "auto" else [source]
    from_video = source == "video"
    return Item(
        name=name,
        category=category,
        frames=() if from_video else tuple(Path(f"{frames}_{i}.png") for i in numbers),
        masks=tuple(Path(f"{masks}_{i}.png") for i in numbers),
        sounds=tuple(Path(sounds[kind]) for kind in kinds),
        meta=row.file,
        row=row.number,
        video=Path(sounds["video"]) if from_video else None,
    )
