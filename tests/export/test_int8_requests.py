"""What save-export --int8 and save-calibrate refuse: requests, tables of other models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from save_deploy.calibration.pairs import collect_pairs
from save_deploy.calibration.table import CalibrationTable
from save_deploy.data.open import open_dataset
from save_deploy.errors import DataError, ExportError, SaveDeployError
from save_deploy.export.export import export
from save_deploy.export.options import CalibrationOptions, ExportOptions
from tests.calibration.samples import write_s4
from tests.command import run
from tests.export.test_run import leftovers

SMALL: dict[str, Any] = {"res": 224, "n_golden": 1, "rounds": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--int8", "--fp8"], "two formats"),
        (["--max-drop", "0.5"], "an option that has no effect here"),
        (["--calib-data", "scenes"], "an option that has no effect here"),
        (["--calib-split", "val"], "an option that has no effect here"),
        (["--calib-pairs", "64"], "an option that has no effect here"),
        (["--no-smooth"], "an option that has no effect here"),
        (["--search-clips", "40"], "an option that has no effect here"),
        (["--int8", "--search-clips", "40"], "an option that has no effect here"),
        (["--int8", "--search-cost", "work"], "an option that has no effect here"),
        (["--int8", "--max-drop", "1", "--search-cost", "money"], "unknown --search-cost"),
        (["--int8", "--search-data", "scenes"], "an option that has no effect here"),
        (
            ["--int8", "--calibration-table", "t", "--calib-data", "scenes"],
            "options that exclude each other",
        ),
        (
            ["--int8", "--calibration-table", "t", "--calib-pairs", "64"],
            "options that exclude each other",
        ),
        (
            ["--int8", "--precision-from", "b", "--calib-split", "val"],
            "options that exclude each other",
        ),
        (["--int8", "--precision-from", "b", "--no-smooth"], "options that exclude each other"),
        (["--int8", "--precision-from", "b", "--calibration-table", "t"], "two sources of ranges"),
        (["--int8", "--max-drop", "-1"], "--max-drop out of range"),
        (["--int8", "--max-drop", "1", "--precision-from", "b"], "two choices of precision"),
        (["--int8", "--calib-pairs", "8"], "too few pairs"),
        (["--int8", "--calib-data", "random"], "random data is refused"),
        (["--int8", "--calib-split", "test"], "test split is refused"),
        (["--int8", "--calib-method", "magic"], "unknown calibration method"),
        (["--int8", "--calibration-table", "none.json"], "no such calibration table"),
        (["--int8", "--calib-data", "nowhere"], "no dataset in this folder"),
    ],
)
def test_bad_requests(tiny_checkpoint: Path, tmp_path: Path, args: list[str], message: str) -> None:
    done = run("export", tiny_checkpoint, "--res", "224", "--golden", "1", *args, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("change", ["res", "weights", "overlap", "units", "form"])
def test_foreign_tables_are_refused(bundle_int8: Path, tmp_path: Path, change: str) -> None:
    values = json.loads((bundle_int8 / "calibration.json").read_text())
    options = dict(SMALL)
    if change == "res":
        options["res"] = 256
    if change == "weights":
        values["model"]["sha256"] = "0" * 64
    if change == "overlap":
        golden = collect_pairs(open_dataset("scenes", split="test"), 1, res=224)
        values["data"]["pair_sha256"][0] = golden.pair_sha256[0]
    if change == "units":
        del values["tensors"]["blocks.3.mlp.lin1"]
    if change == "form":  # measured with adapters that can follow a rescaled norm
        values["smoothing"] |= {"blocks.0.norm2": {"alpha": 0.5, "exponents": [1] * 160}}
        options["without"] = ("adapter",)
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises((DataError, ExportError)) as caught:
        export(
            ExportOptions(
                **options,
                precision="int8",
                out=tmp_path / "b",
                calibration=CalibrationOptions(table=tmp_path / "t.json"),
            )
        )
    told = {
        "res": "another model", "weights": "another model", "overlap": "overlaps the golden",
        "units": "lacks a tensor", "form": "another form of the graph",
    }  # fmt: skip
    assert told[change] in str(caught.value) and caught.value.exit_code == 1
    assert leftovers(tmp_path) == ["t.json"]


@pytest.mark.slow
def test_a_folder_without_numbers_of_sources(tmp_path: Path) -> None:
    """It works, and says what it could not be spread over; nothing is overwritten."""
    write_s4(tmp_path / "good", {"dog": 20, "cat": 20})
    done = run("calibrate", "--res", "224", "--calib-data", "good", "--calib-pairs", "32", "-o",
               "t.json", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not stratified by number of sources" in done.stdout
    assert CalibrationTable.read(tmp_path / "t.json").data["pairs"] == 32
    again = run("calibrate", "-o", "t.json", cwd=tmp_path)
    assert again.returncode == 1 and "output exists" in again.stderr


def test_unknown_precision() -> None:
    with pytest.raises(SaveDeployError, match="unknown precision"):
        ExportOptions(precision="int4")
