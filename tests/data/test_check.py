"""Complete trees are complete; each kind of damage is found, with its file and row."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from save_deploy.data.check import Found, check_dataset
from save_deploy.data.find import resolve
from save_deploy.data.open import open_dataset
from save_deploy.data.skipping import SkippingDataset
from save_deploy.data.write import write_avsbench
from save_deploy.errors import DataError
from tests.data import trees
from tests.data.test_released import DAMAGED, opened, written

PUBLISHED = {  # SPEC 4.1 to 4.5
    "s4": {"train": 3452, "val": 740, "test": 740},
    "ms3": {"train": 296, "val": 64, "test": 64},
    "v2": {"train": 4750, "val": 500, "test": 750},
    "v1s": {"train": 3452, "val": 740, "test": 740},
    "v1m": {"train": 296, "val": 64, "test": 64},
    "v3_seen": {"train": 4807, "val": 535},
    "v3_unseen": {"test": 758},
    "v3_1_shot": {"train": 11, "test": 532},
    "v3_3_shot": {"train": 33, "test": 510},
    "v3_5_shot": {"train": 55, "test": 488},
    "syn": {"train": 52_609, "val": 5000, "test": 5000},
}


def all_trees(root: Path) -> list[Path]:
    trees.write_avss(root / "avss")
    trees.write_v3(root / "avss")
    return [
        trees.write_s4(root),
        trees.write_ms3(root),
        root / "avss",
        trees.write_synthetic(root / "syn"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
def test_complete(tmp_path: Path, deep: bool) -> None:
    found: dict[str, dict[str, int]] = {}
    for folder in all_trees(tmp_path):
        result = check_dataset(str(folder), deep=deep)
        assert result.complete and not result.problems and not result.absent
        for split in result.splits:
            found.setdefault(split.subset, {})[split.split] = split.published
            assert split.rows == len(opened(f"{folder}:{split.subset}", split=split.split))
            assert split.frames.found == split.frames.expected == split.masks.expected
            assert split.sounds == Found(split.rows, split.rows)
    assert found == PUBLISHED


def test_counts(tmp_path: Path) -> None:
    base = trees.write_s4(tmp_path, {"train": 3, "test": 2})
    seen: list[int] = []
    result = check_dataset(str(base), on_item=lambda: seen.append(1))
    rows = {split.split: (split.rows, split.frames) for split in result.splits}
    assert rows == {
        "train": (3, Found(3, 3)),
        "val": (0, Found(0, 0)),
        "test": (2, Found(10, 10)),
    }
    assert len(seen) == 5 and result.complete, "fewer rows than published are no problem"


@pytest.mark.parametrize(("subset", "row"), DAMAGED)
@pytest.mark.parametrize("kind", ["frame", "mask", "sound"])
def test_missing_files(tmp_path: Path, subset: str, row: str, kind: str) -> None:
    name = written(tmp_path, subset)[0]
    item = opened(name).items[0]
    gone = {"frame": item.frames[-1], "mask": item.masks[-1], "sound": item.sounds[0]}[kind]
    gone.unlink()
    result = check_dataset(name)
    (problem,) = [p for p in result.problems if p.row == row]
    assert (problem.what, problem.file) == (f"missing {kind}", str(gone))
    (split,) = [s for s in result.splits if (s.subset, s.split) == (subset, "test")]
    counts = getattr(split, f"{kind}s")
    assert counts.found == counts.expected - 1
    assert not result.complete


def test_deep_opens_every_file(tmp_path: Path) -> None:
    base = trees.write_s4(tmp_path)
    items = opened(base).items
    trees.write_mask(items[1].masks[3], 1, size=(5, 5))
    assert check_dataset(str(base)).complete, "only the first clip of a split is opened"
    (problem,) = check_dataset(str(base), deep=True).problems
    assert (
        problem.what == "mask and frame differ in size" and str(items[1].masks[3]) in problem.file
    )
    assert problem.row == "row 6 of s4_meta_data.csv" and str(problem).count("row 6") == 1
    items[0].sounds[0].write_bytes(b"broken")
    (problem,) = check_dataset(str(base)).problems
    assert (
        problem.what == "sound file cannot be read" and problem.row == "row 5 of s4_meta_data.csv"
    )


def test_malicious_pickle(tmp_path: Path) -> None:
    base = trees.write_s4(tmp_path, kinds=("log_mel",))
    path = next(p for p in opened(base).items[0].sounds if p.suffix == ".pkl")
    path.write_bytes(b"cos\nsystem\n(Vtouch x\ntR.")
    (problem,) = check_dataset(str(base)).problems
    assert "os.system" in problem.file and problem.row == "row 5 of s4_meta_data.csv"


def test_bad_rows_are_reported_once(tmp_path: Path) -> None:
    base = trees.write_s4(tmp_path)
    with (base / "s4_meta_data.csv").open("a") as file:
        file.write("only_a_name\n")
    (problem,) = check_dataset(str(base)).problems
    assert problem.what == "row with too few columns" and problem.row == "row 7 of s4_meta_data.csv"


def test_unusable_metadata(tmp_path: Path) -> None:
    trees.write_avss(tmp_path)
    (tmp_path / "metadata.csv").write_text("uid,split\n")
    problems = check_dataset(str(tmp_path)).problems
    assert {p.what for p in problems} == {"column not in the metadata file"}


def test_name_in_two_splits(tmp_path: Path) -> None:
    base = trees.write_ms3(tmp_path)
    meta = base / "ms3_meta_data.csv"
    meta.write_text(meta.read_text().replace("ms3_val_0", "ms3_train_0"))
    result = check_dataset(str(base))
    (problem,) = result.duplicates
    assert problem.file == "ms3_train_0"
    assert "train (row 2 of" in problem.row and "val (row 4 of" in problem.row
    assert not result.complete


def test_subsets_that_were_not_downloaded(tmp_path: Path) -> None:
    """metadata.csv lists all labels; v2 alone is a complete download of v2."""
    import shutil

    trees.write_avss(tmp_path)
    shutil.rmtree(tmp_path / "v1s")
    result = check_dataset(str(tmp_path))
    assert result.absent == ("v1s",) and result.complete
    assert not check_dataset(f"{tmp_path}:v1s").complete
    shutil.rmtree(tmp_path / "v1m")
    shutil.rmtree(tmp_path / "v2")
    with pytest.raises(DataError, match="metadata without media"):
        check_dataset(str(tmp_path))


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset in this folder"):
        check_dataset(str(tmp_path))


def test_to_dict_is_json(tmp_path: Path) -> None:
    base = trees.write_s4(tmp_path)
    opened(base).items[0].sounds[0].unlink()
    values = json.loads(json.dumps(check_dataset(str(base)).to_dict()))
    assert values["complete"] is False
    assert values["problems"][0]["what"] == "missing sound"
    assert values["splits"][0]["published"] == 3452


def rewrite(meta: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> None:
    with meta.open(newline="") as file:
        rows = list(csv.reader(file))
    trees.write_csv(meta, change(rows))


def numbered(rows: list[list[str]]) -> list[list[str]]:
    """As pandas' to_csv writes it by default."""
    return [["", *rows[0]], *([str(i), *row] for i, row in enumerate(rows[1:]))]


def renumbered(rows: list[list[str]]) -> list[list[str]]:
    """Read and written by pandas once more."""
    return [["", "Unnamed: 0", *rows[0]], *([str(i)] * 2 + row for i, row in enumerate(rows[1:]))]


def renamed(rows: list[list[str]]) -> list[list[str]]:
    """Numbered, with no name that is known but split: the others are known by their places."""
    header = [name if name in ("split", "uid", "label", "a_obj") else "x" for name in rows[0]]
    return numbered([header, *rows[1:]])


def capitals(rows: list[list[str]]) -> list[list[str]]:
    """Names of columns, splits and labels, but neither names of files nor of categories."""
    known = ("train", "val", "validate", "test", "v2")
    change = lambda cell: cell.capitalize() if cell in known else cell
    return [[cell.upper() for cell in rows[0]], *([change(c) for c in row] for row in rows[1:])]


def padded(rows: list[list[str]]) -> list[list[str]]:
    return [[f" {cell} " for cell in row] for row in rows]


@pytest.mark.parametrize("subset", ["s4", "ms3", "v2", "v3_unseen", "syn"])
@pytest.mark.parametrize("change", [numbered, renumbered, renamed, capitals, padded])
def test_tables_that_are_understood(
    tmp_path: Path, subset: str, change: Callable[[list[list[str]]], list[list[str]]]
) -> None:
    name, meta = written(tmp_path, subset)
    expected = {split: opened(name, split=split).items for split in resolve(name).splits}
    rewrite(meta, change)
    assert check_dataset(name).complete
    assert {split: opened(name, split=split).items for split in expected} == expected


NO_TABLE: dict[str, tuple[Callable[[list[list[str]]], list[list[str]]], str]] = {
    "no header": (lambda rows: rows[1:], "metadata file without a header"),
    "semicolons": (lambda rows: [[";".join(row)] for row in rows], "column not in the metadata"),
    "two splits": (lambda rows: [[*r, r[-1]] for r in rows], "column twice in the metadata file"),
    "only a header": (lambda rows: rows[:1], "no clip of this subset in any split"),
    "other splits": (
        lambda rows: [rows[0], *([*r[:-1], "tset"] for r in rows[1:])],
        "unknown split",
    ),
    "a name twice": (lambda rows: [*rows, rows[-1]], "name twice in one split"),
    "a long name": (lambda rows: [*rows, ["a" * 5000, *rows[-1][1:]]], "missing frame"),
}


@pytest.mark.parametrize("subset", ["s4", "ms3"])
@pytest.mark.parametrize("kind", NO_TABLE)
def test_tables_that_say_something_else(tmp_path: Path, subset: str, kind: str) -> None:
    """Found by the check; reading the dataset fails too, but for what only its clips can show."""
    change, what = NO_TABLE[kind]
    name, meta = written(tmp_path, subset)
    rewrite(meta, change)
    result = check_dataset(name)
    assert not result.complete and {p.what for p in result.problems if what in p.what}
    if kind != "a long name":
        with pytest.raises(DataError):
            opened(name)


def test_a_name_twice_says_both_rows(tmp_path: Path) -> None:
    name, meta = written(tmp_path, "ms3")
    rewrite(meta, lambda rows: [*rows, rows[-1]])
    (problem,) = check_dataset(name).problems
    assert problem.row == "row 7 of ms3_meta_data.csv" and "ms3_test_1" in problem.file
    with pytest.raises(DataError, match=r"row 6 of ms3_meta_data\.csv is the first"):
        opened(name)
    skipping = open_dataset(name, skip_bad=True)
    assert isinstance(skipping, SkippingDataset)
    assert len(skipping) == 2 and list(skipping.skipped) == ["row 7 of ms3_meta_data.csv"]


def test_a_quote_that_is_not_closed(tmp_path: Path) -> None:
    """It would make one cell of all rows behind it."""
    name, meta = written(tmp_path, "s4")
    meta.write_text(meta.read_text().replace("s4_val_0", '"s4_val_0'))
    (problem,) = check_dataset(name).problems
    assert problem.what == "metadata file cannot be read"


@pytest.mark.parametrize("name", [b"caf\xe9", b"[bold] {x}", b"c:d", b"two\nlines", b"\x1b[31m"])
def test_folders_of_any_name(tmp_path: Path, name: bytes) -> None:
    """Names need not be UTF-8; pictures, tables and sounds are read, and datasets written there."""
    folder = tmp_path / os.fsdecode(name)
    write_avsbench(folder, name="scenes", subset="s4", counts={"test": 1}, size_px=64)
    assert check_dataset(str(folder / "Single-source"), deep=True).complete


@pytest.mark.parametrize("name", ["a" * 5000, "\0", "a/" * 3000])
def test_folders_that_cannot_exist(name: str) -> None:
    with pytest.raises(DataError, match="no dataset in this folder"):
        check_dataset(name)
