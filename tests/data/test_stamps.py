"""Photographed objects from Debian's packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from save_deploy.data import stamps
from save_deploy.data.compose import Staging, varied_background
from save_deploy.data.open import generated_actors, open_dataset
from save_deploy.errors import DataError


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(stamps.ENV_ROOT, str(tmp_path))
    with pytest.raises(DataError, match="apt-get install tuxpaint-stamps-default tuxpaint-data"):
        stamps.find_package()


@pytest.mark.stamps
def test_objects() -> None:
    found = stamps.actors()
    assert (len(found), len(stamps.actors("seen")), len(stamps.actors("unseen"))) == (84, 71, 13)
    assert not {"giraffe", "iguana", "nandou", "wombat"} & {a.name for a in found}
    assert len({a.label for a in found}) == len(found)
    assert min(a.label for a in found) == stamps.FIRST_LABEL
    assert all(a.recording.size > 1600 and np.isfinite(a.recording).all() for a in found)
    quietest = min(float(np.sqrt((a.recording**2).mean())) for a in found)
    assert quietest > 0.005, "an object with a recording of zeros cannot be found by its sound"


@pytest.mark.stamps
def test_no_background_serves_two_splits() -> None:
    hashes = {s: {p.tobytes() for p in stamps.backgrounds(s)} for s in ("train", "val", "test")}
    assert all(len(h) >= 3 for h in hashes.values())
    assert not hashes["train"] & hashes["val"]
    assert not hashes["train"] & hashes["test"]
    assert not hashes["val"] & hashes["test"]


@pytest.mark.stamps
def test_scenes_have_silent_distractors() -> None:
    clips = stamps.StampScenes("test", n_clips=6)
    for i in range(6):
        clip = clips[i]
        assert clip.labels is not None and len(clip.sounding) == 1
        assert set(np.unique(clip.labels)) - {0, *clip.sounding}
        np.testing.assert_array_equal(clip.frames, stamps.StampScenes("test", n_clips=6)[i].frames)


@pytest.mark.stamps
def test_seen_and_unseen_objects() -> None:
    """Together all objects; nothing that sounds or looks alike is in both."""
    everything, seen, unseen = stamps.actors(), stamps.actors("seen"), stamps.actors("unseen")
    assert sorted(seen + unseen, key=lambda a: a.label) == list(everything)
    assert 13 <= len(unseen) <= 18
    assert not {a.sound_group for a in seen} & {a.sound_group for a in unseen}
    assert not {a.recording.tobytes() for a in seen} & {a.recording.tobytes() for a in unseen}
    labels = {a.label for a in unseen}
    for name, n_sources in (("stamps:unseen", 1), ("stamps:unseen_ms3", 2)):
        clips = open_dataset(name, n_clips=5)
        for i in range(5):
            assert clips[i].labels is not None and len(clips[i].sounding) == n_sources
            assert set(np.unique(clips[i].labels)) - {0} <= labels
    heard = {actor.label for actor in generated_actors("stamps:seen")}
    assert heard == {a.label for a in seen}


@pytest.mark.stamps
def test_varied_backgrounds_of_a_split_are_many_and_repeatable() -> None:
    def frames(index: int) -> np.ndarray:
        staging = Staging(n_frames=1, varied=True)
        return stamps.StampScenes("train", n_clips=9, seed=1, staging=staging)[index].frames

    np.testing.assert_array_equal(frames(3), frames(3))
    corners = {frames(i)[0, :16, :16].tobytes() for i in range(9)}
    assert len(corners) == 9
    photos = [Image.new("RGB", (90, 60), color) for color in ("red", "blue")]
    made = [varied_background(np.random.default_rng(seed), photos, 64) for seed in range(12)]
    assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in made)
    blended = [len(np.unique(image.reshape(-1, 3), axis=0)) > 10 for image in made]
    assert sum(blended) >= 4, "parts of both photos"


def test_unknown_subsets_name_the_known_ones() -> None:
    with pytest.raises(DataError, match="stamps:unseen_ms3"):
        open_dataset("stamps:unheard")
    with pytest.raises(DataError, match=r"scenes:ms3$"):
        open_dataset("scenes:unseen")
