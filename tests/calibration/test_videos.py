"""Unlabeled videos: where stretches lie, that frame and sound are of the same second, bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from save_deploy.calibration.videos import VideoClips, is_videos, stretches_of
from save_deploy.data.sample import FrameDataset
from save_deploy.data.video import read_video_frames, read_video_sound, read_video_stretch
from save_deploy.errors import DataError
from tests.calibration.samples import picture, pitch, write_clip
from tests.data import trees


@pytest.mark.parametrize(
    ("seconds", "starts", "length"),
    [
        (12.0, [0, 7], 5),
        (5.0, [0], 5),
        (3.7, [0], 3),
        (1.0, [0], 1),
        (26.0, [0, 5.25, 10.5, 15.75, 21], 5),
    ],
)
def test_stretches(seconds: float, starts: list[float], length: int) -> None:
    found = stretches_of(Path("v.mp4"), seconds)
    assert [s.start_s for s in found] == starts and {s.seconds for s in found} == {length}


def test_long_films_are_cut_off() -> None:
    found = stretches_of(Path("v.mp4"), 7200.0)
    assert len(found) == 40 and found[0].start_s == 0 and found[-1].start_s == 595
    assert np.diff([s.start_s for s in found]).min() > 5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("gop", [4, 60])
def test_frame_and_sound_of_one_second(tmp_path: Path, suffix: str, gop: int) -> None:
    """Second k of the file shows picture k and sounds at 300 + 100 k Hz, also where it is sought."""
    path = write_clip(tmp_path / f"v{suffix}", seconds=12, gop=gop)
    clips = VideoClips(path)
    assert len(clips) == 2 and isinstance(clips, FrameDataset)
    for index, start in enumerate((0, 7)):
        clip, start_s = clips[index], clips.stretches[index].start_s
        assert start_s == pytest.approx(start, abs=0.1), "an mkv is a little longer than its video"
        assert clip.frames.shape == (5, 48, 64, 3) and clip.frames.dtype == np.uint8
        assert clip.category == "" and not clip.masks.any() and clip.masks.shape == (5, 48, 64)
        assert clip.waveform.shape == (80_000,) and clip.waveform.dtype == np.float32
        for k in range(5):
            shown = min(int(start_s + k + 15 / 16), 11)
            wanted = picture(shown, (64, 48)).astype(float)
            assert np.abs(clip.frames[k] - wanted).mean() < 12
            middle = clip.waveform[k * 16_000 + 2_000 : (k + 1) * 16_000 - 2_000]
            assert pitch(middle) == pytest.approx(300 + 100 * (start + k), abs=5)
            one = clips.sample(index, k)
            np.testing.assert_array_equal(one.frame, clip.frames[k])
            np.testing.assert_array_equal(one.heard(), list(clip.samples())[k].heard())
    assert clips.sample(1, 2).name == f"v{suffix}_{start_s:.1f}s_3"
    assert clips.pairs() == [(i, k) for i in range(2) for k in range(5)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_sought_is_what_decoding_from_the_start_gives(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"v{suffix}", seconds=12)
    whole = read_video_sound(path)
    for start_s in (0.0, 3.3, 6.0):
        frames, sound = read_video_stretch(path, start_s, 5, [0.0, 2.5])
        wanted = read_video_frames(path, [start_s, start_s + 2.5])
        np.testing.assert_array_equal(frames, wanted)
        n = round(start_s * 16_000)
        np.testing.assert_allclose(sound, whole[n : n + 80_000], atol=1e-4)


def test_sound_that_ends_early_is_silence(tmp_path: Path) -> None:
    tone = 0.3 * np.sin(np.arange(2 * 16_000) / 5)[None]
    trees.write_video(tmp_path / "v.mp4", seconds=5, sound=tone, rate=16_000)
    clip = VideoClips(tmp_path / "v.mp4")[0]
    assert np.abs(clip.waveform[:30_000]).max() > 0.25
    assert clip.waveform.shape == (80_000,) and not clip.waveform[36_000:].any()


def test_what_is_a_folder_of_videos(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    write_clip(folder / "b.MP4", seconds=1)
    (folder / "notes.txt").write_text("x")
    assert is_videos(str(folder)) and is_videos(str(folder / "b.MP4"))
    assert is_videos("missing.webm") and not is_videos("scenes:ms3")
    assert not is_videos(str(tmp_path)), "no video directly in it"
    trees.write_csv(folder / "metadata.csv", [["vid", "uid"]])
    assert not is_videos(str(folder)), "a dataset"


def test_file_without_sound(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", seconds=5)
    write_clip(tmp_path / "b.mp4", seconds=5, tone=False)
    (tmp_path / "c.mp4").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no sound in the video\n.*b\.mp4"):
        VideoClips(tmp_path)
    clips = VideoClips(tmp_path, skip_bad=True)
    assert [s.path.name for s in clips.stretches] == ["a.mp4"]
    assert set(clips.skipped) == {"b.mp4", "c.mp4"}
    assert clips.skipped["b.mp4"].startswith("no sound in the video")
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(DataError, match="no video can be read"):
        VideoClips(tmp_path, skip_bad=True)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no video in the folder"):
        VideoClips(tmp_path)
    with pytest.raises(DataError, match="video not found"):
        VideoClips(tmp_path / "missing.mp4")
    with pytest.raises(DataError, match="video is too short"):
        stretches_of(Path("v.mp4"), 0.4)
