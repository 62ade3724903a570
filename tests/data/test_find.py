"""A folder's name -> the dataset it means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from save_deploy.data.find import find_dataset, resolve
from save_deploy.data.open import open_dataset
from save_deploy.errors import DataError
from tests.data import trees


def test_detected_from_the_metadata_file(tmp_path: Path) -> None:
    assert resolve(str(trees.write_s4(tmp_path / "a"))).subset == "s4"
    assert resolve(str(trees.write_ms3(tmp_path / "b"))).subset == "ms3"
    assert resolve(str(trees.write_avss(tmp_path / "c", ("v2",)))).subset == "v2"
    assert resolve(str(trees.write_synthetic(tmp_path / "d"))).subset == "syn"
    assert resolve(str(tmp_path / "a")).subset == "s4", "the folder that holds Single-source/"


def test_several_must_be_chosen_from(tmp_path: Path) -> None:
    trees.write_s4(tmp_path)
    trees.write_ms3(tmp_path)
    with pytest.raises(DataError, match="several datasets in this folder") as error:
        open_dataset(str(tmp_path))
    assert error.value.expected == f"one of {tmp_path}:s4, {tmp_path}:ms3"
    assert open_dataset(f"{tmp_path}:s4")[0].name == "s4_test_0"
    assert open_dataset(f"{tmp_path}:ms3")[0].name == "ms3_test_0"


def test_only_v3_files(tmp_path: Path) -> None:
    trees.write_v3(tmp_path)
    with pytest.raises(DataError, match=r"several datasets[^$]*:v3_unseen"):
        open_dataset(str(tmp_path))


def test_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset in this folder"):
        open_dataset(str(tmp_path))
    with pytest.raises(DataError, match="no dataset in this folder"):
        open_dataset(str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"unknown subset[^$]*v3_5_shot"):
        open_dataset(f"{tmp_path}:v4")
    with pytest.raises(DataError, match=r"subset not in this folder[^$]*metadata.csv"):
        open_dataset(f"{tmp_path}:v2")
    with pytest.raises(DataError, match=r"not in this folder[^$]*v3_1_shot/train.csv"):
        open_dataset(f"{tmp_path}:v3_1_shot")


def test_folder_with_a_colon_in_its_name(tmp_path: Path) -> None:
    trees.write_s4(tmp_path / "a:b")
    assert open_dataset(str(tmp_path / "a:b"))[0].name == "s4_test_0"
    assert open_dataset(f"{tmp_path / 'a:b'}:s4")[0].name == "s4_test_0"


@pytest.mark.parametrize(
    ("subset", "split", "splits"),
    [
        ("v3_seen", "test", "train, val"),
        ("v3_unseen", "train", "test"),
        ("v3_1_shot", "val", "train, test"),
    ],
)
def test_unknown_split_lists_the_splits(
    tmp_path: Path, subset: str, split: str, splits: str
) -> None:
    trees.write_v3(tmp_path)
    with pytest.raises(DataError, match="unknown split") as error:
        open_dataset(f"{tmp_path}:{subset}", split=split)
    assert error.value.got == f"{split} of {subset}" and error.value.expected == splits


def test_split_without_rows_or_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the split has no clips[^$]*val of"):
        open_dataset(str(trees.write_s4(tmp_path / "a", {"test": 1})), split="val")
    trees.write_v3(tmp_path)
    (tmp_path / "v3" / "v3_1_shot" / "train.csv").unlink()
    with pytest.raises(DataError, match=r"no metadata of this split[^$]*one of test"):
        open_dataset(f"{tmp_path}:v3_1_shot", split="train")


def test_find_dataset(tmp_path: Path) -> None:
    """Three folders deep, nearest first; v3/metadata.csv has no media beside it."""
    trees.write_s4(tmp_path / "x" / "AVSBench")
    avss = tmp_path / "AVSBench-semantic"
    trees.write_avss(avss, ("v2",))
    trees.write_v3(avss)
    (avss / "v3" / "metadata.csv").write_bytes((avss / "metadata.csv").read_bytes())
    trees.write_synthetic(tmp_path / "x" / "y" / "syn")
    assert find_dataset(tmp_path, "v2") == f"{avss}:v2"
    for key in ("s4", "v3_seen", "v3_unseen", "v3_1_shot", "v3_3_shot", "v3_5_shot", "syn", "v2"):
        split = "val" if key == "v3_seen" else "test"
        open_dataset(find_dataset(tmp_path, key), split=split)[0]
    with pytest.raises(DataError, match=r"dataset ms3 not found[^$]*ms3_meta_data.csv"):
        find_dataset(tmp_path, "ms3")
    with pytest.raises(DataError, match="unknown subset"):
        find_dataset(tmp_path, "v4")


def test_find_dataset_is_not_deeper_than_three_and_needs_media(tmp_path: Path) -> None:
    deep = tmp_path / "1" / "2" / "3"
    trees.write_synthetic(deep)
    assert find_dataset(tmp_path, "syn") == f"{deep}:syn"
    deep.rename(tmp_path / "1" / "2" / "x")
    (tmp_path / "1" / "2" / "3").mkdir()
    (tmp_path / "1" / "2" / "x").rename(tmp_path / "1" / "2" / "3" / "4")
    with pytest.raises(DataError, match="syn not found"):
        find_dataset(tmp_path, "syn")
    (tmp_path / "metadata.csv").write_text("uid\n")
    with pytest.raises(DataError, match="metadata without media in"):
        find_dataset(tmp_path, "v2")


def test_imports_without_heavy_libraries() -> None:
    """Opening a dataset needs neither torch nor a video decoder."""
    code = (
        "import sys\n"
        "for name in ('torch', 'av', 'soundfile'): sys.modules[name] = None\n"
        "import save_deploy.data.check, save_deploy.data.video, save_deploy.data.safe_pickle\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
