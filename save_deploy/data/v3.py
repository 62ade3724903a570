"""V3, the seen and unseen classes of GAVS: csv files in the AVSS folder or its folder v3/.

SPEC 4.4. The file determines the split: the split column of the few-shot files is wrong. Their
a_obj is blank, so categories are read from meta_v3_unseen.csv. The media are those of AVSS.
"""

from __future__ import annotations

import os
from pathlib import Path

from save_deploy.data.avss import SOURCES, Columns, clip_item
from save_deploy.data.released import Item, Listing, check_source, collect
from save_deploy.data.tables import Row, read_table
from save_deploy.errors import DataError

SUBSETS = {
    "v3_seen": {"train": 4807, "val": 535},
    "v3_unseen": {"test": 758},
    "v3_1_shot": {"train": 11, "test": 532},
    "v3_3_shot": {"train": 33, "test": 510},
    "v3_5_shot": {"train": 55, "test": 488},
}
UNSEEN = "meta_v3_unseen.csv"


def file_name(subset: str, split: str) -> str:
    """Return the path of a metadata file, relative to the folder of the csv files."""
    if subset == "v3_seen":
        return f"meta_v3_seen_{split}.csv"
    return UNSEEN if subset == "v3_unseen" else f"{subset}/{split}.csv"


def metadata(folder: Path, subset: str, split: str = "test") -> Path | None:
    """Return the metadata file in the folder or its folder v3/, or None."""
    for base in (folder, folder / "v3"):
        meta = base / file_name(subset, split)
        if os.path.isfile(meta):
            return meta
    return None


def has_media(folder: Path, subset: str) -> bool:
    """Return True when the AVSS folder is found."""
    return _media(folder) is not None


def _media(folder: Path) -> Path | None:
    """Return the AVSS folder: this one, or its parent when this one is v3/."""
    for base in (folder, folder.parent):
        if os.path.isdir(base / "v2") or os.path.isdir(base / "v1m"):
            return base
    return None


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
    """Return all rows of the file of this split."""
    check_source(source, SOURCES, subset)
    table = read_table(meta)
    columns, media = Columns.of(table), _media(folder) or folder
    categories = _categories(folder) if subset.endswith("_shot") else {}

    def make(row: Row, index: int) -> Item | None:
        # V3 has no v1s clips; for one, only mask 0 would be certain to exist
        return clip_item(media, row, columns, first_only=True, categories=categories)

    return collect(table.rows, make, limit)


def _categories(folder: Path) -> dict[str, str]:
    """Return uid -> a_obj of the unseen classes."""
    meta = metadata(folder, "v3_unseen")
    if meta is None:
        raise DataError(
            "categories of the few-shot clips not found",
            got=str(folder),
            expected=f"{UNSEEN} beside the few-shot folders",
        )
    table = read_table(meta)
    uid, a_obj = table.column("uid"), table.column("a_obj")
    return {row.filled(uid, "uid"): row.cell(a_obj, "a_obj") for row in table.rows}
