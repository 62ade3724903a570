"""Generated data: the same seed gives the same clip, masks are what sounds, splits are disjoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from save_deploy.data.compose import Staging
from save_deploy.data.open import open_dataset
from save_deploy.data.scenes import SHAPES, Scenes, actors
from save_deploy.data.sound_swap import swap_sound
from save_deploy.data.write import write_avsbench
from save_deploy.errors import DataError


def test_same_seed_same_clip() -> None:
    a, b, c = Scenes(seed=3)[5], Scenes(seed=3)[5], Scenes(seed=4)[5]
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.waveform, b.waveform)
    assert (a.frames != c.frames).any()


def test_splits_differ() -> None:
    assert (Scenes("train")[0].frames != Scenes("test")[0].frames).any()


@pytest.mark.parametrize("n_sources", [0, 1, 2])
def test_mask_is_what_sounds(n_sources: int) -> None:
    for i in range(4):
        clip = Scenes(n_sources=n_sources, n_clips=4)[i]
        assert clip.frames.shape == (5, 256, 256, 3) and clip.frames.dtype == np.uint8
        assert clip.waveform.shape == (80_000,) and np.abs(clip.waveform).max() <= 1
        assert clip.labels is not None and len(clip.sounding) == n_sources
        np.testing.assert_array_equal(clip.masks, np.isin(clip.labels, clip.sounding))
        visible = set(np.unique(clip.labels)) - {0}
        assert visible - set(clip.sounding), "every scene has a silent distractor"
        assert clip.masks.any() == (n_sources > 0)


@pytest.mark.parametrize("n_sources", [0, 1])
def test_a_sound_out_of_view_has_no_mask(n_sources: int) -> None:
    for i in range(4):
        staging = Staging(n_frames=1, out_of_view=1.0)
        clip = Scenes(n_sources=n_sources, n_clips=4, staging=staging)[i]
        plain = Scenes(n_sources=n_sources, n_clips=4, staging=Staging(n_frames=1))[i]
        assert clip.labels is not None and len(clip.sounding) == n_sources + 1
        assert clip.sounding[-1] not in clip.labels
        assert clip.masks.any() == (n_sources > 0)
        np.testing.assert_array_equal(clip.masks, np.isin(clip.labels, clip.sounding))
        assert np.abs(clip.waveform).max() > 0.03, "room noise is below 0.01"
        assert len(plain.sounding) == n_sources
    assert len({len(Scenes("train", n_sources=1, n_clips=40, staging=Staging(
        n_frames=1, size_px=32, out_of_view=0.5))[i].sounding) for i in range(12)}) == 2  # fmt: skip


def test_every_second_of_a_source_is_audible() -> None:
    for actor in actors():
        pieces = actor.recording[: len(actor.recording) // 4000 * 4000].reshape(-1, 4000)  # 0.25 s
        assert np.sqrt((pieces**2).mean(axis=1)).min() > 0.005, actor.name


def test_twelve_different_voices() -> None:
    """No two timbres have nearly the same average spectrum."""
    from save_deploy.data.log_mel import log_mel_frames

    means = np.stack([log_mel_frames(a.recording).mean(axis=0) for a in actors()])
    distance = np.linalg.norm(means[:, None] - means[None], axis=-1) + 1e9 * np.eye(len(SHAPES))
    assert distance.min() > 3


@pytest.mark.slow
def test_swapped_sound_is_another_objects() -> None:
    clips = Scenes(n_clips=6)
    wrong, silent = swap_sound(clips, "wrong"), swap_sound(clips, "silent")
    for i in range(6):
        assert (wrong[i].waveform != clips[i].waveform).any()
        np.testing.assert_array_equal(wrong[i].masks, clips[i].masks)
        assert not silent[i].waveform.any()
    with pytest.raises(DataError, match="unknown sound"):
        swap_sound(clips, "loud")


@pytest.mark.parametrize(("subset", "folder"), [("s4", "Single-source"), ("ms3", "Multi-sources")])
def test_written_dataset_reads_back(tmp_path: Path, subset: str, folder: str) -> None:
    """AVSBench's layout: S4 training clips have one annotated frame; MS3 frames carry `.mp4`."""
    counts = {"train": 2, "val": 1, "test": 2}
    write_avsbench(tmp_path, name="scenes", subset=subset, counts=counts, size_px=96)
    read = open_dataset(str(tmp_path / folder), split="test")
    n_sources = 1 if subset == "s4" else 2
    staging = Staging(size_px=96, n_objects=(n_sources + 1, n_sources + 3))
    for i in range(2):
        made = Scenes("test", n_clips=2, n_sources=n_sources, staging=staging)[i]
        np.testing.assert_array_equal(read[i].frames, made.frames)
        np.testing.assert_array_equal(read[i].masks, made.masks)
        np.testing.assert_allclose(read[i].waveform, made.waveform, atol=2e-4)  # 16-bit wav
    training = open_dataset(str(tmp_path), split="train")
    assert len(training[0].masks) == (1 if subset == "s4" else 5)
    if subset == "ms3":
        assert list((tmp_path / folder).rglob("*.mp4_1.png"))
    with pytest.raises(DataError, match="dataset exists"):
        write_avsbench(tmp_path, name="scenes", subset=subset, counts=counts, size_px=96)


def test_errors_name_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"save-deploy data stamps"):
        open_dataset(str(tmp_path))
    with pytest.raises(DataError, match="unknown subset"):
        open_dataset("scenes:ms4")
    write_avsbench(tmp_path, name="scenes", subset="s4", counts={"test": 1}, size_px=96)
    with pytest.raises(DataError, match="the split has no clips"):
        open_dataset(str(tmp_path), split="train")
    mask = next(tmp_path.rglob("gt_masks/**/*_3.png"))
    frame = next(tmp_path.rglob("visual_frames/**/*_3.png"))
    frame.write_bytes(frame.read_bytes()[:200])
    with pytest.raises(DataError, match="image cannot be read"):
        open_dataset(str(tmp_path))[0]
    from PIL import Image

    Image.new("RGB", (96, 96)).save(frame)
    Image.new("L", (50, 96)).save(mask)
    with pytest.raises(DataError, match="differ in size"):
        open_dataset(str(tmp_path))[0]
