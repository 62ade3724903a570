"""Folder of a run that a stranger made or changed: what is refused, before anything is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from save_deploy.errors import DataError, OutputError
from save_deploy.runtime.bulk.export import export_masks
from save_deploy.runtime.bulk.ledger import FAILED, Ledger, Result
from save_deploy.runtime.bulk.masks import MaskFile, Row, _runs_of, read_rows
from save_deploy.runtime.bulk.place import Place
from save_deploy.runtime.bulk.videos import Video
from save_deploy.runtime.result import rle_of
from tests.runtime.test_bulk_folder import FACTS
from tests.test_files import names

MASK = np.arange(48).reshape(6, 8) % 5 == 0
ROW = vars(Row.of(0.5, 0, MASK))
VIDEO = Video("a", "/a.mp4", 5)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of one video with one frame."""
    place = Place(tmp_path / "out")
    place.open(FACTS, force=False)
    place.add_to_manifest([VIDEO])
    with Ledger(place):
        pass
    write_masks(place.mask_file("a"), ROW)
    return place.root


def write_masks(path: Path, row: dict[str, Any]) -> None:
    """One row as MaskFile writes it, whatever it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = MaskFile(path, run=FACTS.hash, video=VIDEO.hash, name="a")
    file._rows = [Row(**row)]
    file.finish()


def change(path: Path, **columns: Any) -> None:
    """Other values or types in a parquet file; None removes a column."""
    table = parquet.read_table(path)
    for name, values in columns.items():
        at = table.column_names.index(name)
        if values is None:
            table = table.remove_column(at)
        else:
            kind = None if isinstance(values, pa.Array) else table.schema.field(name).type
            table = table.set_column(at, name, [values if kind is None else pa.array(values, kind)])
    parquet.write_table(table, path)


def test_the_run_as_it_was_made(out: Path, tmp_path: Path) -> None:
    assert Place(out).videos() == [VIDEO]
    for kind in ("coco", "sav", "png"):
        assert export_masks(out, kind, tmp_path / kind).frames == 1
    (row,) = read_rows(Place(out).mask_file("a"))
    assert np.array_equal(row.mask(), MASK)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": ["../../a"]}, "not a valid file name"),
        ({"id": ["/tmp/a"]}, "not a valid file name"),
        ({"id": ["a" * 300]}, "not a valid file name"),
        ({"id": [""]}, "not a valid file name"),
        ({"id": [None]}, "no id in a row"),
        ({"id": None}, "not the manifest of a run"),
        ({"id": pa.array([7])}, "not the manifest of a run"),
        ({"id": pa.array([b"\xff"]).view(pa.string())}, "not the manifest of a run"),
        ({"uri": [" "]}, "row 1: uri"),
        ({"uri": [None]}, "no uri in a row"),
        ({"size": [-1]}, "row 1: size"),
        ({"size": pa.array([5.0])}, "not the manifest of a run"),
        ({"start_s": [float("nan")]}, "row 1: wrong section"),
        ({"start_s": [None]}, "no start_s in a row"),
        ({"seconds": [0.0]}, "row 1: wrong section"),
        ({"seconds": None}, "not the manifest of a run"),
        ({"fps": ["often"]}, "row 1: wrong frame rate"),
        ({"fps": None}, "not the manifest of a run"),
    ],
)
def test_manifests_of_strangers(
    out: Path, tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    """Neither exported nor added to."""
    change(Place(out).manifest, **columns)
    before = Place(out).manifest.read_bytes()
    for kind in ("coco", "sav", "png"):
        with pytest.raises(DataError, match=said):
            export_masks(out, kind, tmp_path / "deep" / kind)
    with pytest.raises(DataError, match=said):
        Place(out).add_to_manifest([Video("b", "/b.mp4")])
    assert names(tmp_path) == ["out"] and Place(out).manifest.read_bytes() == before


def test_two_rows_with_one_id(out: Path, tmp_path: Path) -> None:
    path = Place(out).manifest
    table = parquet.read_table(path)
    parquet.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(DataError, match="two videos with one id"):
        export_masks(out, "coco", tmp_path / "coco.json")


@pytest.mark.parametrize("name", ["manifest.parquet", "results/videos.parquet"])
def test_files_that_are_not_of_a_run(out: Path, name: str) -> None:
    (out / name).write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    read = Place(out).videos if name.startswith("manifest") else Ledger(Place(out)).__enter__
    with pytest.raises(DataError, match=r"not the (manifest|results) of a run"):
        read()


@pytest.mark.parametrize("columns", [{"id": None}, {"id": [None]}, {"status": pa.array([1])}])
def test_results_of_strangers(out: Path, columns: dict[str, Any]) -> None:
    place = Place(out)
    with Ledger(place) as ledger:
        ledger.add(Result(VIDEO, FAILED, error="e"))
    change(place.results / "videos.parquet", **columns)
    with pytest.raises(DataError, match="not the results of a run"):
        Ledger(place).__enter__()


@pytest.mark.parametrize(
    "line",
    [b"{}", b"7", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"id": "a", "status": "done"}',
     {"frames": "many"}, {"id": 7}, {"id": None}, {"status": "odd"}, {"more": 1}, {"frames": 1e300}],
)  # fmt: skip
def test_journals_of_strangers(out: Path, line: bytes | dict[str, Any]) -> None:
    """Lines that no run writes are passed over, as the incomplete last one of a killed driver."""
    place, right = Place(out), Result(VIDEO, FAILED, error="e").row
    if isinstance(line, dict):
        line = json.dumps({**right, **line}).encode()
    place.results.mkdir(parents=True, exist_ok=True)
    (place.results / ".ab.jsonl").write_bytes(line + b"\n" + json.dumps(right).encode() + b"\n")
    with Ledger(place) as ledger:
        assert ledger.rows == {VIDEO.id: right}


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_locks_and_attempts_that_lead_elsewhere(out: Path, tmp_path: Path, kind: str) -> None:
    """A link in a stranger's folder does not empty or lengthen the file it leads to."""
    own, place = tmp_path / "own.txt", Place(out)
    own.write_text("mine")
    place.attempts.mkdir(exist_ok=True)
    for path in (out / ".lock", place.attempts / "a"):
        path.unlink(missing_ok=True)
        path.symlink_to(own) if kind == "link" else os.mkfifo(path)
    with pytest.raises(OutputError, match="cannot be written"), place.locked():
        pass
    with pytest.raises(OutputError, match="cannot be written"):
        place.begin_try("a")
    assert own.read_text() == "mine"


def wrapping_counts() -> str:
    """Return 70,001 run lengths with a sum of 2**64 + 48, which is 48 in 64 bits."""
    m = 35_000  # runs 0, then twice d, 2d, ..., m d, stored as differences d; the last is longer
    d, rest = divmod(2**64 + 48, m * (m + 1))

    def coded(value: int) -> str:
        digits = [value >> 5 * k & 31 for k in range(7)]
        return "".join(chr(48 + digit + 32 * (k < 6)) for k, digit in enumerate(digits))

    return "0" + coded(d) * (2 * m - 1) + coded(d + rest)


def test_a_sum_that_wraps_is_not_the_size() -> None:
    counts = wrapping_counts()
    runs = _runs_of(counts)
    assert runs.min() == 0 and runs.sum() == 48 and sum(map(int, runs)) == 2**64 + 48
    with pytest.raises(DataError, match="wrong row"):
        Row(**{**ROW, "counts": counts}).check("x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0}, {"height": -6, "width": -8}, {"height": 2**20, "width": 2**20}, {"width": 9},
        {"counts": "4"},  # fewer pixels than the mask: pycocotools leaves the others as they were
        {"counts": ""}, {"counts": "P"}, {"counts": ROW["counts"] + "P"},  # read beyond their end
        {"counts": "0" + "P" * 12 + "0"}, {"counts": "~1"}, {"counts": "\u00e9"}, {"counts": "N`1"},
        {"share": 1.5}, {"share": float("nan")}, {"t_s": float("inf")}, {"counts": None},
        {"share": None},
    ],
)  # fmt: skip
def test_rows_of_strangers(out: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Refused before pycocotools reads them, which trusts sizes and run lengths."""
    write_masks(Place(out).mask_file("a"), ROW | wrong)
    for kind in ("coco", "sav", "png"):
        with pytest.raises(DataError, match="mask file"):
            export_masks(out, kind, tmp_path / "deep" / kind)
    assert names(tmp_path) == ["out"]


def test_mask_files_of_other_columns(out: Path) -> None:
    path = Place(out).mask_file("a")
    for columns in ({"share": None}, {"height": pa.array([6.0])}, {"counts": pa.array([b"0"])}):
        write_masks(path, ROW)
        change(path, **columns)
        with pytest.raises(DataError, match="not a mask file"):
            list(read_rows(path))


def test_run_lengths_of_many_masks() -> None:
    """Decoded as pycocotools encodes them: short and long runs, differences of either sign."""
    rng = np.random.default_rng(0)
    masks = [rng.random((1 + n, 3)) < n / 30 for n in range(30)]
    masks += [np.zeros((900, 1200), bool), np.ones((900, 1200), bool), np.eye(300, dtype=bool)]
    masks[-3][400:, 700:] = masks[-2][5, 5:] = True
    masks[-2][7, 7] = False
    for mask in masks:
        row = Row.of(0.0, 0, mask)
        assert row.check("") is row and np.array_equal(row.mask(), mask)
        assert _runs_of(row.counts).tolist() == rle_of(mask)["counts"]
