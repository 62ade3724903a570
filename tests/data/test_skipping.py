"""Bad clips are passed over, and their reasons kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from save_deploy.data.open import open_dataset
from save_deploy.data.sample import Clip
from save_deploy.data.scenes import Scenes
from save_deploy.data.skipping import SkippingDataset, iter_clips
from save_deploy.data.sound_swap import swap_sound
from save_deploy.errors import DataError
from tests.data import trees
from tests.data.test_released import opened


def damaged(tmp_path: Path) -> tuple[SkippingDataset, Path]:
    """Four test clips; the second has no sound, the third a broken last frame."""
    base = trees.write_s4(tmp_path, {"test": 4})
    clips = opened(base)
    sound = clips.items[1].sounds[0]
    sound.unlink()
    clips.items[2].frames[4].write_bytes(b"broken")
    clips = open_dataset(str(base), skip_bad=True)
    assert isinstance(clips, SkippingDataset)
    return clips, sound


def test_good_clips_and_reasons(tmp_path: Path) -> None:
    clips, sound = damaged(tmp_path)
    assert len(clips) == 4
    assert [clip.name for clip in clips] == ["s4_test_0", "s4_test_3"]
    assert set(clips.skipped) == {"s4_test_1", "s4_test_2"}
    assert clips.skipped["s4_test_1"] == f"sound not found: {sound}, row 3 of s4_meta_data.csv"
    assert "row 4 of s4_meta_data.csv" in clips.skipped["s4_test_2"]
    assert all("\n" not in reason for reason in clips.skipped.values())
    assert clips[3].name == "s4_test_3"
    with pytest.raises(DataError, match="sound not found"):
        clips[1]


def test_next_pair(tmp_path: Path) -> None:
    clips, _ = damaged(tmp_path)
    assert len(clips.pairs()) == 20
    assert clips.sample(0, 2).name == "s4_test_0_3" and not clips.skipped
    assert clips.sample(1, 0).name == "s4_test_2_1", "the next clip's first frame is good"
    assert clips.sample(2, 4).name == "s4_test_3_1"
    assert set(clips.skipped) == {"s4_test_1", "s4_test_2"}


def test_the_last_pair_is_followed_by_the_first(tmp_path: Path) -> None:
    clips, _ = damaged(tmp_path)
    opened(tmp_path).items[3].sounds[0].unlink()
    assert clips.sample(3, 4).name == "s4_test_0_1"


def test_every_clip_is_bad(tmp_path: Path) -> None:
    clips, _ = damaged(tmp_path)
    for path in tmp_path.rglob("*.wav"):
        path.unlink()
    with pytest.raises(DataError, match="no clip can be read"):
        clips.sample(0, 0)
    with pytest.raises(DataError, match="no clip can be read"):
        list(clips)


def test_a_part_may_have_no_good_clip(tmp_path: Path) -> None:
    """Another process may have good ones; a view of the whole may not."""

    class Bad:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Clip:
            raise DataError("bad", got=str(index))

    whole = SkippingDataset(Bad())
    assert list(whole.over(Bad(), is_part=True)) == [] and len(whole.skipped) == 2
    with pytest.raises(DataError, match="no clip can be read"):
        list(whole.over(Bad()))


def test_bad_rows_are_skipped_too(tmp_path: Path) -> None:
    base = trees.write_s4(tmp_path, {"test": 2})
    with (base / "s4_meta_data.csv").open("a") as file:
        file.write("only_a_name\n")
    with pytest.raises(DataError, match="too few columns"):
        open_dataset(str(base))
    clips = open_dataset(str(base), skip_bad=True)
    assert isinstance(clips, SkippingDataset) and len(list(clips)) == 2
    assert list(clips.skipped) == ["row 4 of s4_meta_data.csv"]
    assert "too few columns" in clips.skipped["row 4 of s4_meta_data.csv"]


def test_iter_clips_of_any_dataset(tmp_path: Path) -> None:
    clips, _ = damaged(tmp_path)
    assert [clip.name for clip in iter_clips(clips)] == ["s4_test_0", "s4_test_3"]
    assert len(list(iter_clips(Scenes(n_clips=2)))) == 2
    with pytest.raises(DataError, match="sound not found"):
        list(iter_clips(opened(tmp_path)))


def test_generated_data(tmp_path: Path) -> None:
    clips = open_dataset("scenes", n_clips=2, skip_bad=True)
    assert isinstance(clips, SkippingDataset) and len(list(clips)) == 2
    with pytest.raises(DataError, match="known only after reading"):
        clips.pairs()


def test_swapped_sound_keeps_the_tolerance(tmp_path: Path) -> None:
    clips, _ = damaged(tmp_path)
    silent = swap_sound(clips, "silent")
    found = list(iter_clips(silent))
    assert [clip.name for clip in found] == ["s4_test_0", "s4_test_3"]
    assert not np.concatenate([clip.waveform for clip in found]).any()
    assert set(clips.skipped) == {"s4_test_1", "s4_test_2"}, "named as before, in one place"
