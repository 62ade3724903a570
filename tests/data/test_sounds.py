"""What is heard with each frame: stored log-mel, waveforms, videos, and sounds that end early."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from save_deploy.data.log_mel import log_mel_examples
from save_deploy.data.open import open_dataset
from save_deploy.data.sample import Clip
from save_deploy.data.scenes import Scenes
from save_deploy.data.sound_swap import swap_sound
from save_deploy.errors import DataError
from tests.data import trees
from tests.data.test_released import opened

ALL = ("wav", "log_mel", "video")


def clip_of(seconds: float, *, frames: int = 5, fill: str = "repeat") -> Clip:
    return Clip(
        name="c",
        category="x",
        frames=np.zeros((frames, 4, 4, 3), np.uint8),
        masks=np.zeros((frames, 4, 4), bool),
        waveform=trees.sound("c", seconds),
        fill=fill,
    )


@pytest.mark.parametrize("seconds", [5.0, 4.815, 4.9, 12.0])
def test_log_mels_are_those_of_the_whole_sound(seconds: float) -> None:
    clip = clip_of(seconds)
    np.testing.assert_array_equal(clip.log_mels(), log_mel_examples(clip.waveform)[:5])


@pytest.mark.parametrize("fill", ["repeat", "zeros"])
@pytest.mark.parametrize(("seconds", "n"), [(4.814, 4), (2.0, 2), (0.975, 1)])
def test_missing_examples(fill: str, seconds: float, n: int) -> None:
    """S4 and MS3 repeat the last one; AVSS has zeros, which silence would not give."""
    clip = clip_of(seconds, fill=fill)
    got, examples = clip.log_mels(), log_mel_examples(clip.waveform)
    assert got.shape == (5, 1, 96, 64) and got.dtype == np.float32 and len(examples) == n
    np.testing.assert_array_equal(got[:n], examples)
    expected = examples[-1] if fill == "repeat" else np.zeros((1, 96, 64))
    for example in got[n:]:
        np.testing.assert_array_equal(example, expected)


@pytest.mark.parametrize("fill", ["repeat", "zeros"])
@pytest.mark.parametrize("seconds", [0.3, 0.975, 2.0, 4.814, 4.815, 4.9, 5.0, 9.0])
def test_samples_hear_what_clips_hear(fill: str, seconds: float) -> None:
    clip = clip_of(seconds, fill=fill)
    got = np.stack([sample.log_mel_example() for sample in clip.samples()])
    np.testing.assert_array_equal(got, clip.log_mels())


def test_short_sound_is_completed_with_silence() -> None:
    clip = clip_of(0.3, frames=1)
    padded = np.pad(clip.waveform, (0, 16_000))
    np.testing.assert_array_equal(clip.log_mels(), log_mel_examples(padded)[:1])


def test_generated_clips_hear_the_same_as_before() -> None:
    for sample in Scenes(n_clips=1)[0].samples():
        np.testing.assert_array_equal(
            sample.log_mel_example(), log_mel_examples(sample.waveform)[0]
        )


def test_avss_fills_with_zeros(tmp_path: Path) -> None:
    clips = opened(trees.write_avss(tmp_path))
    trees.write_wav(clips.items[0].sounds[0], 9.614)  # the tenth example needs 9.615 s
    got = clips[0].log_mels()
    assert got[:9].any(axis=(1, 2, 3)).all() and not got[9].any()
    np.testing.assert_array_equal(clips.sample(0, 9).log_mel_example(), got[9])


@pytest.mark.parametrize("write", [trees.write_s4, trees.write_ms3])
def test_stored_log_mel_is_used_as_it_is(tmp_path: Path, write: object) -> None:
    base = write(tmp_path, kinds=("log_mel",))  # type: ignore[operator]
    clips = opened(base)
    clip, name = clips[1], clips.items[1].name
    np.testing.assert_array_equal(clip.log_mels(), trees.log_mel_of(name))
    assert clip.waveform.dtype == np.float32 and clip.waveform.shape == (0,)
    for k, sample in enumerate(clip.samples()):
        np.testing.assert_array_equal(sample.log_mel_example(), trees.log_mel_of(name)[k])
        read = clips.sample(1, k)
        np.testing.assert_array_equal(read.log_mel_example(), trees.log_mel_of(name)[k])
        assert read.waveform.size == sample.waveform.size == 0
    for thing in (clip, clips.sample(1, 0)):
        with pytest.raises(DataError, match=r"stores only log-mel[^$]*--from wav"):
            thing.heard()


def test_one_example_for_the_one_training_frame(tmp_path: Path) -> None:
    clip = opened(trees.write_s4(tmp_path, kinds=("log_mel",)), split="train")[0]
    np.testing.assert_array_equal(clip.log_mels(), trees.log_mel_of(clip.name)[:1])


def test_stored_log_mel_with_too_few_examples(tmp_path: Path) -> None:
    clips = opened(trees.write_s4(tmp_path, kinds=("log_mel",)))
    path = next(p for p in clips.items[0].sounds if p.suffix == ".pkl")
    trees.write_log_mel(path, trees.log_mel_of("other", 3))
    expected = trees.log_mel_of("other", 3)
    got = clips[0].log_mels()
    np.testing.assert_array_equal(got, expected[[0, 1, 2, 2, 2]])
    np.testing.assert_array_equal(clips.sample(0, 4).log_mel_example(), expected[2])


def test_heard_is_the_waveform(tmp_path: Path) -> None:
    clip = opened(trees.write_s4(tmp_path))[0]
    np.testing.assert_array_equal(clip.heard(), trees.sound(clip.name, 5))
    assert next(clip.samples()).heard().shape == (16_000,)


def test_auto_prefers_wav_then_log_mel_then_video(tmp_path: Path) -> None:
    clips = opened(trees.write_s4(tmp_path, kinds=ALL))
    kinds = []
    for _ in range(3):
        found = clips.items[0].found_sound()
        assert found is not None
        kinds.append(found.suffix)
        clip = clips[0]
        assert clip.frames.shape[1:3] == (12, 16), "auto takes frames from the PNG files"
        assert (clip.log_mel is not None) == (found.suffix == ".pkl")
        found.unlink()
    assert kinds == [".wav", ".pkl", ".mp4"]
    with pytest.raises(DataError, match=r"sound not found[^$]*row 5 of s4_meta_data.csv"):
        clips[0]


@pytest.mark.parametrize(("source", "suffix"), [("wav", ".wav"), ("log_mel", ".pkl")])
def test_a_named_source_is_not_replaced(tmp_path: Path, source: str, suffix: str) -> None:
    clips = opened(trees.write_s4(tmp_path, kinds=ALL), source=source)
    (path,) = clips.items[0].sounds
    assert path.suffix == suffix
    path.unlink()
    with pytest.raises(DataError, match="sound not found"):
        clips[0]


@pytest.mark.parametrize("write", [trees.write_s4, trees.write_ms3])
def test_source_video(tmp_path: Path, write: object) -> None:
    """Frame i at i + 15/16 s of native size, the mask resized to it, the sound decoded."""
    base = write(tmp_path, kinds=("video",))  # type: ignore[operator]
    clips = opened(base, source="video")
    clip = clips[0]
    assert clip.frames.shape == (5, 48, 64, 3)
    levels = clip.frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, [2 * (16 * i + 15) for i in range(5)], atol=3)
    for i, mask in enumerate(clip.masks, 1):
        assert mask.shape == (48, 64)
        assert np.flatnonzero(mask.all(axis=0)).tolist() == list(range(4 * i, 4 * i + 4))
    heard = clip.heard()[3000:70_000]
    assert np.corrcoef(heard, trees.sound(clip.name, 5)[3000:70_000])[0, 1] > 0.98
    np.testing.assert_allclose(clips.sample(0, 2).frame.mean(), levels[2])


def test_source_video_errors_name_the_row(tmp_path: Path) -> None:
    clips = opened(trees.write_s4(tmp_path, kinds=("video",)), source="video")
    video = clips.items[0].video
    assert video is not None
    trees.write_video(video, sound=None)
    with pytest.raises(DataError, match=r"no sound in the video[^$]*row 5 of s4_meta_data.csv"):
        clips[0]
    video.unlink()
    with pytest.raises(DataError, match=r"video not found[^$]*row 5 of s4_meta_data.csv"):
        clips[0]


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such source[^$]*auto, wav, log_mel, video"):
        opened(trees.write_s4(tmp_path), source="mp3")


def test_swapped_sound_of_stored_log_mel(tmp_path: Path) -> None:
    """A stored log-mel must be swapped too, or a deaf model would seem to listen."""
    clips = opened(trees.write_s4(tmp_path, kinds=("log_mel",)))
    silent = swap_sound(clips, "silent")[0]
    np.testing.assert_allclose(silent.log_mels(), -4.605170, atol=1e-6)
    meta = tmp_path / "Single-source" / "s4_meta_data.csv"
    text = meta.read_text()
    assert "s4_test_1,3,dog_barking" in text
    folders = list((tmp_path / "Single-source").rglob("test/dog_barking"))
    for folder in folders:
        folder.with_name("helicopter").symlink_to(folder)
    meta.write_text(text.replace("s4_test_1,3,dog_barking", "s4_test_1,3,helicopter"))
    wrong = swap_sound(open_dataset(str(meta.parent)), "wrong")[0]
    np.testing.assert_array_equal(wrong.log_mels(), trees.log_mel_of("s4_test_1"))
