"""Runs over many videos: films, a run of them in this process, and what it wrote."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pyarrow import parquet

from save_deploy.bundle import Manifest
from save_deploy.runtime.bulk import worker
from save_deploy.runtime.bulk.masks import read_rows
from save_deploy.runtime.bulk.place import Place
from tests.command import Done
from tests.command import run as command
from tests.runtime.films import tone, write_film


class Eyes:
    """In place of a pipeline: sounding is what is bright, in a second with a tone."""

    precision, backend, threshold = "none", "none", 0.5
    config = SimpleNamespace(res=64)

    def __init__(self, batch: int = 1) -> None:
        self.batch, self.batches, self.calls = batch, (batch,), list[int]()

    def embed(self, waveform: np.ndarray) -> np.ndarray:
        return np.full((1, 128), np.sqrt(np.mean(np.square(waveform))), np.float32)

    def run(self, images: np.ndarray, heard: np.ndarray) -> np.ndarray:
        self.calls.append(len(images))
        assert len(images) <= self.batch
        bright = images.mean(axis=-1, dtype=np.float32) - 125
        return np.where(heard[:, :1, None] > 0.02, bright, -np.abs(bright) - 1)

    def twin(self) -> Eyes:
        return self

    def close(self) -> None: ...


def see(monkeypatch: Any, batch: int = 1) -> Eyes:
    """Eyes run whatever bundle is named, in this process."""
    eyes = Eyes(batch)
    monkeypatch.setattr(worker, "load", lambda *_, **__: eyes)
    return eyes


def empty_bundle(folder: Path, like: Path) -> Path:
    """The manifest of a bundle, and files of its names that hold nothing."""
    shutil.copytree(like, folder, copy_function=lambda a, b: Path(b).touch())
    shutil.copy(like / "manifest.json", folder)
    Manifest.read(folder)
    return folder


def write_films(folder: Path) -> Path:
    """Three films of several sizes and rates, one of them below, and a file that is no film."""
    (folder / "night").mkdir(parents=True)
    write_film(folder / "one.mp4", sound=tone(3, (1,)))
    write_film(folder / "two.mkv", sound=tone(2, (0,)), seconds=2, fps=8, size=(64, 96))
    write_film(folder / "night" / "three.mp4", sound=tone(1, (0,)), seconds=1, size=(128, 64))
    (folder / "broken.mp4").write_bytes(b"no film" * 99)
    (folder / "notes.txt").write_text("no film either")
    return folder


def run(bundle: Path, *args: str | Path) -> Done:
    return command("run", bundle, *args, "--actors", "1")


def table(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of results/, by id; each id once."""
    rows = parquet.read_table(out / "results" / "videos.parquet").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def failed(out: Path) -> dict[str, dict[str, str]]:
    with (out / "failed.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def masks(out: Path, name: str) -> list[np.ndarray]:
    return [row.mask() for row in read_rows(Place(out).mask_file(name))]


def run_json(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def mask_bytes(out: Path) -> dict[str, bytes]:
    """Mask files by name."""
    return {p.name: p.read_bytes() for p in sorted((out / "masks").rglob("*.parquet"))}


def left_over(out: Path) -> list[str]:
    """What no run that ended may leave."""
    names = [str(path.relative_to(out)) for path in out.rglob("*")]
    return [n for n in names if ".partial-" in n or n.startswith("attempts") or "jsonl" in n]
