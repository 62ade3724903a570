"""AVSBench folders as released: S4 (Single-source) and MS3 (Multi-sources), frames + masks + wav.

Layouts in SPEC 4.1 and 4.2. Only annotated frames are read (S4 training clips have one).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from save_deploy.data.audio import EXAMPLE_SECONDS, read_waveform
from save_deploy.data.sample import Clip
from save_deploy.data.transforms import read_frame, read_mask
from save_deploy.errors import DataError


@dataclass(frozen=True)
class _Row:
    name: str
    category: str
    frames: Path  # frame i is frames.with_name(f"{frames.name}_{i}.png"), i from 1
    masks: Path
    sound: Path


class AvsBench:
    """Clips of one subset and split, in the order of the metadata file."""

    def __init__(self, rows: list[_Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Clip:
        row = self.rows[index]
        numbers = [i for i in range(1, 6) if _numbered(row.masks, i).is_file()]
        if not numbers:
            raise DataError(
                "clip without masks",
                got=str(_numbered(row.masks, 1)),
                expected="masks _1.png to _5.png",
            )
        masks = [read_mask(_numbered(row.masks, i)) for i in numbers]
        frames = [read_frame(_numbered(row.frames, i)) for i in numbers]
        for i, frame, mask in zip(numbers, frames, masks, strict=True):
            if frame.shape[:2] != mask.shape:
                raise DataError(
                    "mask and frame differ in size",
                    got=f"{mask.shape} in {_numbered(row.masks, i)}",
                    expected=str(frame.shape[:2]),
                )
        return Clip(
            name=row.name,
            category=row.category,
            frames=np.stack(frames),
            masks=np.stack(masks),
            waveform=read_waveform(row.sound, min_seconds=EXAMPLE_SECONDS),
        )


def open_avsbench(root: Path, *, split: str, n_clips: int | None = None) -> AvsBench:
    """root is the folder of one subset (Single-source or Multi-sources) or one that holds it.

    Raises DataError when there is no metadata file, or no clip of this split.
    """
    for base in (root, root / "Single-source", root / "Multi-sources"):
        for subset in ("s4", "ms3"):
            meta = base / f"{subset}_meta_data.csv"
            if meta.is_file():
                rows = _rows(meta, base / f"{subset}_data", subset, split)[:n_clips]
                if not rows:
                    raise DataError(
                        "no clip of this split",
                        got=f"{split} in {meta}",
                        expected="train, val or test rows",
                    )
                return AvsBench(rows)
    raise DataError(
        "not an AVSBench folder",
        got=str(root),
        expected="s4_meta_data.csv or ms3_meta_data.csv in it",
        hint="save-deploy data stamps -o DIR   writes one, or use --data scenes",
    )


def _rows(meta: Path, data: Path, subset: str, split: str) -> list[_Row]:
    with meta.open(newline="") as file:
        table = list(csv.reader(file))[1:]
    rows = []
    for columns in table:
        if columns[-1] != split:
            continue
        name = columns[0]
        if subset == "s4":
            place = Path(split) / columns[2]
            frames = data / "visual_frames" / place / name / name
        else:
            place = Path(split)
            frames = data / "visual_frames" / name / f"{name}.mp4"
        rows.append(
            _Row(
                name=name,
                category=columns[2] if subset == "s4" else "multi",
                frames=frames,
                masks=data / "gt_masks" / place / name / name,
                sound=data / "audio_wav" / place / f"{name}.wav",
            )
        )
    return rows


def _numbered(prefix: Path, i: int) -> Path:
    return prefix.with_name(f"{prefix.name}_{i}.png")
