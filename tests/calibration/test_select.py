"""Which pairs ranges are taken from: spread, repeatable, real; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from save_deploy.calibration import select
from save_deploy.calibration.pairs import NOISE_ABOVE, frame_roughness, pair_digest
from save_deploy.calibration.select import Selection, loudness_of, select_pairs
from save_deploy.calibration.videos import VideoClips
from save_deploy.data.open import open_dataset
from save_deploy.data.scenes import Scenes
from save_deploy.data.transforms import resize_frame
from save_deploy.errors import DataError
from tests.calibration.samples import noise, picture, write_clip, write_s4
from tests.data import trees

RES = 32


def pick(name: object, n: int = 32, **options: object) -> Selection:
    return select_pairs(str(name), n, res=RES, **options)  # type: ignore[arg-type]


@cache
def scenes() -> Selection:
    return pick("scenes")


def wavs(base: Path) -> list[Path]:
    return sorted((base / "s4_data/audio_wav/train").rglob("*.wav"))


def set_level(path: Path, level: float) -> None:
    soundfile.write(path, np.full(80_000, level, np.float32), 16_000, subtype="FLOAT")


# --- what is chosen


@pytest.mark.slow
def test_scenes_are_spread() -> None:
    """As in training: mostly one source, sometimes none or two; every single category is met."""
    read: list[int] = []
    found = pick("scenes", 48, on_clip=lambda *_: read.append(1))
    pairs = found.pairs
    assert pairs.image.shape == (48, RES, RES, 3) and pairs.image.dtype == np.uint8
    assert pairs.waveform.shape == (48, 16_000) and pairs.waveform.dtype == np.float32
    assert pairs.truth.shape == (48, RES, RES) and pairs.truth.dtype == bool
    assert len(set(pairs.names)) == 48 and len(read) <= 3 * 48
    assert found.not_stratified == () and (found.source, found.split) == ("scenes", "train")
    assert set(found.strata["sources"]) == {"0", "1", "2"}
    single = [n for name, n in found.strata["category"].items() if "_" not in name]
    assert len(single) == 13, "twelve objects and silence"
    assert max(single) - min(single) <= 2
    loudness = found.strata["loudness"]
    assert loudness["quiet"] >= 12 and loudness["loud"] >= 12
    for counts in found.strata.values():
        assert sum(counts.values()) == 48


@pytest.mark.slow
def test_scenes_with_two_sources() -> None:
    found = pick("scenes:ms3")
    assert found.strata["sources"] == {"2": 32}
    assert max(found.strata["category"].values()) == 1, "more combinations than pairs"
    assert pick("scenes:s4").strata["sources"] == {"1": 32}


@pytest.mark.stamps
def test_stamps() -> None:
    found = pick("stamps:ms3", split="val")
    assert found.strata["sources"] == {"2": 32} and found.split == "val"


@pytest.mark.slow
def test_pairs_are_of_the_dataset() -> None:
    """Frame, sound and mask of one name belong together: read again by clip and frame number."""
    found = pick("scenes:s4", seed=3)
    clips = Scenes("train", n_clips=64, seed=3)
    for i, name in enumerate(found.pairs.names[:6]):
        _, split, clip, frame = name.split("_")
        sample = list(clips[int(clip)].samples())[int(frame) - 1]
        assert split == "train" and sample.name == name
        np.testing.assert_array_equal(found.pairs.image[i], resize_frame(sample.frame, RES))
        np.testing.assert_array_equal(found.pairs.waveform[i], sample.heard())
        assert found.pairs.pair_sha256[i] == pair_digest(
            resize_frame(sample.frame, RES), sample.heard()
        )
    frames = Counter(name[-1] for name in found.pairs.names)
    assert set(frames) == set("12345"), "not always the same frame of a clip"


@pytest.mark.thorough
def test_same_seed_same_pairs(tmp_path: Path) -> None:
    base = write_s4(tmp_path, {"cat": 60, "horn": 60})
    for name in ("scenes", base):
        first, again, other = pick(name, seed=1), pick(name, seed=1), pick(name, seed=2)
        assert first.pairs.names == again.pairs.names
        assert first.pairs.sha256 == again.pairs.sha256
        assert first.pairs.pair_sha256 == again.pairs.pair_sha256
        assert set(other.pairs.pair_sha256) != set(first.pairs.pair_sha256)


@pytest.mark.slow
def test_pair_hashes() -> None:
    pairs = scenes().pairs
    digests = pairs.pair_sha256
    assert len(set(digests)) == 32 and all(len(d) == 16 and int(d, 16) >= 0 for d in digests)
    waveform = pairs.waveform.copy()
    waveform[5, 100] += 0.01
    image = pairs.image.copy()
    image[7, 0, 0, 0] ^= 1
    changed = replace(pairs, waveform=waveform, image=image).pair_sha256
    assert [i for i in range(32) if changed[i] != digests[i]] == [5, 7]


@pytest.mark.slow
def test_released_categories_take_turns(tmp_path: Path) -> None:
    """200, 30 and 4 clips: the small categories are used up, the large one fills the rest."""
    base = write_s4(tmp_path, {"cat": 200, "dog": 30, "horn": 4})
    read: list[int] = []
    found = pick(base, on_clip=lambda *_: read.append(1))
    assert found.strata["category"] == {"cat": 14, "dog": 14, "horn": 4}
    assert found.not_stratified == ("number of sources: the data has no labels",)
    assert len(read) == 64 + 32
    cats = sorted(int(n.split("_")[2]) for n in found.pairs.names if n.startswith("cat"))
    gaps = np.diff([0, *cats, 199])
    assert gaps.max() <= 2 * 200 / 14, f"over the whole category, not its first clips: {cats}"
    assert not (found.pairs.image == found.pairs.image[0]).all()


def test_frames_of_few_clips_are_used_once(tmp_path: Path) -> None:
    base = trees.write_ms3(tmp_path, {"train": 8})
    for i, path in enumerate(sorted(base.rglob("visual_frames/*/*.png"))):
        Image.fromarray(picture(i, trees.SIZE)).save(path)
    found = pick(base)
    assert len(found.pairs) == len(set(found.pairs.names)) == 32
    clips = Counter(name.rpartition("_")[0] for name in found.pairs.names)
    assert set(clips.values()) <= {3, 4, 5} and len(clips) == 8
    assert "category: all are multi" in found.not_stratified


def test_fewer_pairs_than_asked_for(tmp_path: Path) -> None:
    base = write_s4(tmp_path, {"cat": 40})
    assert len(pick(base, 100).pairs) == 40


@pytest.mark.slow
@pytest.mark.parametrize(("n_silent", "kept"), [(1, 1), (2, 1), (20, 3), (34, 3)])
def test_few_silent_seconds(tmp_path: Path, n_silent: int, kept: int) -> None:
    """One in ten at most, one at least when there are some; quiet and loud in equal parts."""
    base = write_s4(tmp_path, {"cat": 64})
    for i, path in enumerate(wavs(base)):
        set_level(path, 0 if i < n_silent else (0.05 if i % 2 else 0.5))
    found = pick(base)
    loudness = found.strata["loudness"]
    if n_silent < 34:
        assert loudness["silent"] == kept and len(found.pairs) == 32
        assert abs(loudness["quiet"] - loudness["loud"]) <= 1
    rms = np.sqrt(np.mean(found.pairs.waveform**2, axis=1))
    assert np.count_nonzero(rms < 1e-4) == loudness["silent"] <= len(found.pairs) / 10


def test_loudness() -> None:
    levels = (0.0, 0.00009, 0.00011, 0.099, 0.101)
    names = [loudness_of(np.full(16_000, level, np.float32)) for level in levels]
    assert names == ["silent", "silent", "quiet", "quiet", "loud"]


@pytest.mark.slow
def test_dict_is_json() -> None:
    found = scenes()
    shown = json.loads(json.dumps(found.to_dict()))
    assert list(shown) == [
        "source", "split", "pairs", "sha256", "names", "pair_sha256", "strata", "not_stratified",
        "skipped",
    ]  # fmt: skip
    assert shown["pairs"] == 32 and len(shown["names"]) == len(shown["pair_sha256"]) == 32
    assert shown["sha256"] == found.pairs.sha256 and shown["strata"] == found.strata


@pytest.mark.slow
def test_videos(tmp_path: Path) -> None:
    """Three films of 12, 15 and 10 seconds: 35 frames; none has a label."""
    for k, seconds in enumerate((12, 15, 10)):
        write_clip(tmp_path / f"{k}.mp4", seconds=seconds, level=0.05 + 0.2 * k)
    found = pick(tmp_path, split="val")
    assert found.split == "none" and len(found.pairs) == 32
    assert set(found.strata) == {"loudness"} and found.strata["loudness"]["loud"] > 5
    assert found.not_stratified == (
        "category: the data has none",
        "number of sources: the data has no labels",
    )
    assert {name[:5] for name in found.pairs.names} == {"0.mp4", "1.mp4", "2.mp4"}
    with pytest.raises(DataError, match=r"10 pairs of .*2\.mp4"):
        pick(tmp_path / "2.mp4")


def test_bad_clips(tmp_path: Path) -> None:
    base = write_s4(tmp_path, {"cat": 40})
    broken = wavs(base)[3]
    broken.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"sound file cannot be read\n.*row \d+ of s4_meta_data"):
        pick(base)
    found = pick(base, skip_bad=True)
    assert list(found.skipped) == [broken.stem] and "cannot be read" in found.skipped[broken.stem]
    assert len(found.pairs) == 32 and f"{broken.stem}_1" not in found.pairs.names
    for path in wavs(base)[4:14]:
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"29 pairs of .*; 11 skipped, the first: cat_train_"):
        pick(base, skip_bad=True)


@pytest.mark.slow
def test_videos_without_sound_are_listed(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", seconds=40)
    write_clip(tmp_path / "b.mp4", seconds=5, tone=False)
    with pytest.raises(DataError, match=r"no sound in the video\n.*b\.mp4"):
        pick(tmp_path)
    assert list(pick(tmp_path, skip_bad=True).skipped) == ["b.mp4"]


# --- what is refused


@pytest.mark.parametrize("name", ["random", "noise", "Noise", "random:s4"])
def test_random_data(name: str) -> None:
    with pytest.raises(DataError, match="random data is refused") as error:
        pick(name)
    assert "ranges of noise do not fit" in error.value.expected
    assert error.value.hint


@pytest.mark.parametrize("name", ["scenes", "missing_folder"])
def test_test_split(name: str) -> None:
    with pytest.raises(DataError, match="test split is refused") as error:
        pick(name, split="test")
    assert "--calib-split train" in error.value.hint


def test_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 32 pairs"):
        pick("scenes", 31)
    base = write_s4(tmp_path, {"cat": 31})
    with pytest.raises(DataError, match=r"31 pairs of [^\n]*\n.*at least 32 pairs"):
        pick(base)


def test_the_same_pair_again_does_not_count(tmp_path: Path) -> None:
    base = write_s4(tmp_path, {"cat": 40})
    frames = sorted((base / "s4_data/visual_frames/train").rglob("*_1.png"))
    for path, sound in list(zip(frames, wavs(base), strict=True))[20:]:
        shutil.copy(frames[0], path)
        shutil.copy(wavs(base)[0], sound)
    with pytest.raises(DataError, match=r"\d+ distinct pairs among 32"):
        pick(base)


@pytest.mark.slow
def test_too_much_silence(tmp_path: Path) -> None:
    """20 seconds to hear allow 2 silent ones."""
    base = write_s4(tmp_path, {"cat": 60})
    for path in wavs(base)[20:]:
        set_level(path, 0)
    with pytest.raises(DataError, match=r"60 pairs of .*, 40 of them silent"):
        pick(base)
    for path in wavs(base):
        set_level(path, 0)
    with pytest.raises(DataError, match="all selected sounds are silent"):
        pick(base)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda i: np.full((24, 32, 3), (i, 255 - i, 60), np.uint8),
            "all selected frames are of one",
        ),
        (lambda i: picture(1), "all selected frames are identical"),
        (noise, "frames are random noise"),
        (lambda i: picture(i) if i % 5 < 2 else noise(i), "frames are random noise"),
    ],
)
def test_frames_that_are_no_pictures(tmp_path: Path, make: object, message: str) -> None:
    base = write_s4(tmp_path, {"cat": 40}, make=make)
    with pytest.raises(DataError, match=message) as error:
        pick(base)
    assert error.value.got and error.value.expected and error.value.hint


def test_a_few_odd_frames_are_no_reason(tmp_path: Path) -> None:
    """One in four noise, one in four of one color."""
    gray = np.full((24, 32, 3), 90, np.uint8)
    odd = {0: noise(1), 1: gray}
    base = write_s4(tmp_path, {"cat": 40}, make=lambda i: odd.get(i % 4, picture(i)))
    assert len(pick(base).pairs) == 32


@pytest.mark.parametrize("res", [8, 32, 200])
def test_noise_of_another_size(tmp_path: Path, res: int) -> None:
    """Noise is known at the size of its file too: enlarged, it is smooth."""
    base = write_s4(tmp_path, {"cat": 40}, make=noise)
    with pytest.raises(DataError, match="frames are random noise"):
        select_pairs(str(base), 32, res=res)


def test_roughness() -> None:
    """White noise as calculated, E|x-y| / sigma: sqrt(12)/3 uniform, 2/sqrt(pi) normal."""
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    normal = rng.normal(128, 30, (200, 200, 3)).clip(0, 255).astype(np.uint8)
    assert frame_roughness(uniform) == pytest.approx(np.sqrt(12) / 3, rel=0.02)
    assert frame_roughness(normal) == pytest.approx(2 / np.sqrt(np.pi), rel=0.02)
    assert NOISE_ABOVE == pytest.approx(0.924, abs=0.001)
    assert frame_roughness(np.full((9, 9, 3), 7, np.uint8)) == 0
    scenes = open_dataset("scenes", n_clips=3)
    for i in range(3):
        assert frame_roughness(resize_frame(scenes[i].frames[0], 64)) < 0.6


def test_smaller_minimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimum is one constant."""
    monkeypatch.setattr(select, "MIN_PAIRS", 4)
    base = write_s4(tmp_path, {"cat": 5})
    assert len(pick(base, 4).pairs) == 4
    write_clip(tmp_path / "v.mp4", seconds=5)
    assert len(VideoClips(tmp_path / "v.mp4")) == 1 and len(pick(tmp_path / "v.mp4", 4).pairs) == 4
