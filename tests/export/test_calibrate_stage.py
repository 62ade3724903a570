"""Around the calibration of a model: clips passed over, overlap with what is measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from save_deploy.calibration.pairs import pair_digest
from save_deploy.calibration.table import CalibrationTable
from save_deploy.data.audio import second
from save_deploy.data.open import open_dataset
from save_deploy.data.transforms import resize_frame
from save_deploy.errors import DataError
from save_deploy.export.options import CalibrationOptions, ExportOptions
from save_deploy.export.quantize import calibrate as stage
from save_deploy.export.quantize.calibrate import calibrate, measure_table, obtain_table
from save_deploy.export.quantize.trial import make_validation
from save_deploy.runtime.eager import eager_pipeline
from tests.calibration.samples import write_clip, write_s4
from tests.command import run
from tests.conftest import make_tiny
from tests.export.test_calibrate import deployed, selection


@pytest.fixture(scope="module")
def table() -> CalibrationTable:
    model = make_tiny()
    return calibrate(model, deployed(model), selection())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_clips_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end the run, or are passed over and listed: in the table and on the screen."""
    base = write_s4(tmp_path, {"cat": 34})
    broken = base / "s4_data/audio_wav/train/cat/cat_train_3.wav"
    broken.write_bytes(b"broken")
    model = make_tiny()
    options = CalibrationOptions(data=str(base), pairs=32)
    with pytest.raises(DataError, match="cannot be read"):
        measure_table(model, deployed(model), options, "scenes")
    found = measure_table(model, deployed(model), replace(options, skip_bad=True), "scenes")
    assert list(found.data["skipped"]) == ["cat_train_3"] and found.data["pairs"] == 32
    found.write(tmp_path / "t.json")
    assert CalibrationTable.read(tmp_path / "t.json") == found
    monkeypatch.setattr(stage, "calibrate_checkpoint", lambda *_, **__: found)
    said = run("calibrate", "--skip-bad", "--force", "-o", tmp_path / "t.json").stdout
    assert "skipped cat_train_3: " in said and " s, peak memory " in said
    assert "peak" not in (tmp_path / "t.json").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_test_clips_by_name(table: CalibrationTable, tmp_path: Path) -> None:
    """A finished table, and videos, whose clips are test clips of the dataset of the golden samples."""
    base, model = write_s4(tmp_path / "released", {"cat": 1}), make_tiny()
    names = ["dog_test_1_3", *table.data["names"][1:]]
    replace(table, data={**table.data, "names": names}).write(tmp_path / "t.json")
    calibration = CalibrationOptions(table=tmp_path / "t.json")
    options = ExportOptions(precision="int8", data=str(base), calibration=calibration)
    obtain = lambda o: obtain_table(
        model, deployed(model), o, selection(seed=5).pairs, on_stage=lambda *_: None
    )
    with pytest.raises(DataError, match="calibration table overlaps the test split") as error:
        obtain(options)
    assert "dog_test_1_3" in error.value.got and "--data" in error.value.hint
    assert obtain(replace(options, data="scenes")).data["names"] == names
    write_clip(tmp_path / "films" / "dog_test_0.mp4", seconds=35)
    films = CalibrationOptions(data=str(tmp_path / "films"), pairs=32)
    with pytest.raises(DataError, match=r"overlaps the test split(.|\n)*dog_test_0\.mp4"):
        measure_table(model, deployed(model), films, str(base))


def test_a_search_on_calibrated_pairs_is_refused(table: CalibrationTable) -> None:
    model = make_tiny()
    clip = open_dataset("scenes", split="val", n_clips=1)[0]
    digest = pair_digest(resize_frame(clip.frames[2], 64), second(clip.heard(), 2))
    seen = replace(table, data={**table.data, "pair_sha256": ["0" * 16, digest]})
    with pytest.raises(DataError, match="search overlaps the calibration") as error:
        make_validation(eager_pipeline(model), "scenes", 1, seen)
    assert error.value.got == f"frame 3 of {clip.name}" and "--search-data" in error.value.hint
    assert len(make_validation(eager_pipeline(model), "scenes", 1, table).sizes) == 1
