"""Calibration pairs that are also measured on are found by hash, by name and by copy."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from save_deploy.calibration.overlap import (
    clip_of,
    refuse_overlap,
    refuse_test_clips,
    refuse_test_names,
)
from save_deploy.calibration.pairs import collect_pairs
from save_deploy.calibration.select import Selection, select_pairs
from save_deploy.data.open import open_dataset
from save_deploy.errors import DataError
from tests.calibration.samples import write_clip, write_s4

RES = 32


@cache
def chosen_scenes() -> Selection:
    return chosen("scenes")


def chosen(name: object) -> Selection:
    return select_pairs(str(name), 32, res=RES)


@pytest.mark.slow
def test_pairs_of_other_splits_differ() -> None:
    other = collect_pairs(open_dataset("scenes", split="test"), 8, res=RES)
    refuse_overlap(chosen_scenes(), other, "the golden samples")


@pytest.mark.slow
def test_an_equal_pair() -> None:
    found = chosen_scenes()
    other = collect_pairs(open_dataset("scenes", split="test"), 3, res=RES)
    image, waveform = other.image.copy(), other.waveform.copy()
    image[1], waveform[1] = found.pairs.image[9], found.pairs.waveform[9]
    with pytest.raises(DataError, match="calibration overlaps the golden samples") as error:
        refuse_overlap(found, replace(other, image=image, waveform=waveform), "the golden samples")
    assert found.pairs.names[9] in error.value.got and other.names[1] in error.value.got
    refuse_overlap(found, replace(other, image=image), "the frame alone is no pair")


@pytest.mark.slow
def test_pairs_of_another_size_cannot_be_compared() -> None:
    other = collect_pairs(open_dataset("scenes", split="test"), 2, res=16)
    with pytest.raises(ValueError, match="16"):
        refuse_overlap(chosen_scenes(), other, "the golden samples")


def test_names_of_the_test_split(tmp_path: Path) -> None:
    base = write_s4(tmp_path, {"cat": 33})
    found = chosen(base)
    refuse_test_clips(str(base), found)
    listed = found.pairs.names[4].rpartition("_")[0]
    with (base / "s4_meta_data.csv").open("a") as file:
        file.write(f"{listed},3,cat,test\n")
    with pytest.raises(DataError, match="overlaps the test split") as error:
        refuse_test_clips(str(base), found)
    assert f"{listed}_1, listed as test clip in row 37 of s4_meta_data.csv" in error.value.got
    assert "--calib-split" in error.value.hint


def test_no_media_of_the_test_split_is_needed(tmp_path: Path) -> None:
    base = write_s4(tmp_path, {"cat": 33})
    found = chosen(base)
    for folder in ("visual_frames", "gt_masks", "audio_wav"):
        shutil.rmtree(base / "s4_data" / folder / "test")
    refuse_test_clips(str(base), found)


def test_copy_under_another_name(tmp_path: Path) -> None:
    """A test clip whose third frame and sound are those of a training clip."""
    base = write_s4(tmp_path, {"cat": 32})
    found, data = chosen(base), base / "s4_data"
    frames, sounds = data / "visual_frames", data / "audio_wav"
    twin = frames / "test/dog/dog_test_1/dog_test_1_1.png"
    shutil.copy(frames / "train/cat/cat_train_5/cat_train_5_1.png", twin)
    refuse_test_clips(str(base), found)  # the frame alone: another sound is heard with it
    shutil.copy(sounds / "train/cat/cat_train_5.wav", sounds / "test/dog/dog_test_1.wav")
    with pytest.raises(DataError, match="overlaps the test split") as error:
        refuse_test_clips(str(base), found)
    assert "cat_train_5_1, the same frame and sound as dog_test_1_1" in error.value.got


@pytest.mark.parametrize(
    ("pair", "clip"),
    [
        ("cat_train_5_1", "cat_train_5"),
        ("--4gqARaEJE_3.mp4_12.5s_4", "--4gqARaEJE_3"),
        ("My film.v2.MOV_0.0s_1", "My film.v2"),
        ("x.mp4_3", "x.mp4"),
    ],
)
def test_clip_of_a_pair(pair: str, clip: str) -> None:
    assert clip_of(pair) == clip


@pytest.mark.slow
def test_pairs_from_elsewhere_are_compared_by_name(tmp_path: Path) -> None:
    """Of a finished table or a folder of videos, with the dataset that accuracy is measured on."""
    base = write_s4(tmp_path / "released", {"cat": 1})
    write_clip(tmp_path / "films" / "dog_test_1.mp4", seconds=35)
    films = chosen(tmp_path / "films")
    with pytest.raises(DataError, match="the films overlaps the test split of Single-sou") as error:
        refuse_test_names(films.pairs.names, str(base), "the films", hint="others")
    assert "listed as test clip in row" in error.value.got and error.value.hint == "others"
    refuse_test_names(["dog_train_1_3", "dog_test_10_1"], str(base), "the table")
    for data in ("scenes", "stamps:ms3", tmp_path / "films"):
        refuse_test_names(films.pairs.names, str(data), "the films")


@pytest.mark.slow
def test_nothing_is_known_of_videos_and_generated_data(tmp_path: Path) -> None:
    write_clip(tmp_path / "v.mp4", seconds=35)
    films = chosen(tmp_path)
    refuse_test_clips(str(tmp_path), films)
    refuse_test_clips(str(tmp_path / "v.mp4"), films)
    refuse_test_clips("scenes", chosen_scenes())
    refuse_test_clips("stamps:ms3", chosen_scenes())


def test_hashes_do_not_depend_on_the_order() -> None:
    found = chosen_scenes()
    back = replace(
        found.pairs,
        image=np.ascontiguousarray(found.pairs.image[::-1]),
        waveform=found.pairs.waveform[::-1],
        names=found.pairs.names[::-1],
    )
    assert back.pair_sha256 == found.pairs.pair_sha256[::-1]
    with pytest.raises(DataError, match=found.pairs.names[0]):
        refuse_overlap(found, back, "itself")
