"""Videos in, masks out: the right mask at the right time, the sound and the times kept."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from save_deploy.data.video import read_video_sound, read_video_stretch
from save_deploy.errors import BackendError, DataError
from save_deploy.runtime.video.options import Section
from save_deploy.runtime.video.source import VideoSource
from tests.runtime.films import (
    SIDE,
    SIZE,
    Ears,
    frames_of,
    left_in,
    masks_in,
    run,
    sound_of,
    square,
    tone,
    with_matrix,
    write_film,
)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Three seconds at 10 per second; only the second one sounds."""
    return write_film(tmp_path / "film.mp4", sound=tone(3, (1,)))


def test_masks_follow_picture_and_sound(film: Path, tmp_path: Path) -> None:
    """Every mask against the drawing: the moving square in the second with the tone, else nothing."""
    ears = Ears()
    out, record = tmp_path / "o.mp4", tmp_path / "o.json"
    result = run(film, ears, out=out, masks=tmp_path / "m", record=record)
    masks = masks_in(tmp_path / "m")
    assert len(masks) == 30 and len(ears.heard) == 3, "listens once per second"
    for k, mask in enumerate(masks):
        if 10 <= k < 20:
            wrong = mask ^ square(k, SIZE)
            assert wrong.sum() <= 4 * SIDE, k  # the codec blurs the rim
        else:
            assert not mask.any(), k
    share = SIDE**2 / (SIZE[0] * SIZE[1])
    assert result.mask_share == pytest.approx(share / 3, rel=0.1)
    assert (result.frames, result.seconds) == (30, 3)
    quiet = [np.sqrt(np.mean(w**2)) < 1e-4 for w in ears.heard]
    assert result.silent_seconds == sum(quiet) and 1 <= sum(quiet) <= 2  # AAC smears the tone
    found = json.loads(record.read_text(), parse_constant=pytest.fail)
    first, second, third = found["seconds"]
    assert first["loudness_dbfs"] is None or first["loudness_dbfs"] < -50
    assert second["loudness_dbfs"] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.3)
    assert [f["time_s"] for f in third["frames"]] == pytest.approx(np.arange(2, 3, 0.1))
    assert second["mask_share"] == pytest.approx(share, rel=0.1) and third["mask_share"] == 0
    assert found["run"]["video"] == str(film) and found["total"]["frames"] == 30
    assert left_in(tmp_path) == {"film.mp4", "o.mp4", "o.json", "m"}


def test_overlay_video_keeps_times_sound_and_unmarked_pixels(film: Path, tmp_path: Path) -> None:
    run(film, out=tmp_path / "o.mp4", color="#00ff00")
    before, times = frames_of(film)
    after, kept = frames_of(tmp_path / "o.mp4")
    assert kept == times and len(after) == 30
    assert sound_of(tmp_path / "o.mp4") == sound_of(film), "copied, not encoded again"
    with av.open(str(tmp_path / "o.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 10 and stream.duration * stream.time_base == 3
    for k in (0, 25):  # silent: the picture as it was
        assert np.abs(after[k].astype(int) - before[k]).max() < 24
    k, inside = 15, square(15, SIZE)
    core = after[k][inside].reshape(SIDE, SIDE, 3)[6:10, 6:10].mean((0, 1))
    np.testing.assert_allclose(core, 0.6 * 220 + 0.4 * np.array([0, 255, 0]), atol=12)
    away = np.ones(SIZE[::-1], bool)
    away[:40] = False
    assert np.abs(after[k][away].astype(int) - before[k][away]).mean() < 4


@pytest.mark.slow
def test_sound_is_that_of_the_datasets(tmp_path: Path) -> None:
    """Bit for bit what read_video_sound and read_video_stretch give, second by second."""
    noise = np.random.default_rng(0).normal(scale=0.2, size=(2, 4 * RATE_48)).astype(np.float32)
    path = write_film(tmp_path / "n.mp4", seconds=4, sound=noise, rate=RATE_48)
    pieces = list(VideoSource(path).sound_seconds())
    assert [p.size for p in pieces[:-1]] == [16_000] * (len(pieces) - 1)
    np.testing.assert_array_equal(np.concatenate(pieces), read_video_sound(path))
    section = VideoSource(path, Section(1.3, 2.0))
    _, expected = read_video_stretch(path, 1.3, 2.0, [0])
    np.testing.assert_array_equal(np.concatenate(list(section.sound_seconds()))[:32_000], expected)


RATE_48 = 48_000


def test_section_and_rate(film: Path, tmp_path: Path) -> None:
    """From 1.5 s on for one second, five frames: the section's clock starts at 0."""
    result = run(film, out=tmp_path / "o.mp4", masks=tmp_path / "m", section=Section(1.5, 1.0, 5.0))
    _, times = frames_of(tmp_path / "o.mp4")
    assert times == [Fraction(k, 5) for k in range(5)] and result.frames == 5
    for k, mask in enumerate(masks_in(tmp_path / "m")):
        assert (mask ^ square(15 + 2 * k, SIZE)).sum() <= 4 * SIDE
    with av.open(str(tmp_path / "o.mp4")) as container:
        packets = [p.pts * p.time_base for p in container.demux(audio=0) if p.size]
    assert 0 <= packets[0] < 0.05 and 0.9 < packets[-1] < 1.0
    with pytest.raises(DataError, match="starts after the end"):
        run(film, out=tmp_path / "p.mp4", section=Section(30.0))
    length_s = VideoSource(film).length_s
    assert length_s is not None and 3 <= length_s < 3.2
    VideoSource(film, Section(length_s - 0.01))
    with pytest.raises(DataError, match="starts after the end"):
        VideoSource(film, Section(length_s))
    for wrong in ((-1.0, None, None), (0.0, 0.0, None), (0.0, None, float("nan"))):
        with pytest.raises(DataError, match="wrong section"):
            Section(*wrong)


def test_variable_frame_rate(tmp_path: Path) -> None:
    """Uneven times survive, and a frame hears the second of its time, not of its number."""
    times = [0, 40, 90, 700, 1010, 1100, 1900, 2500, 2533]
    path = write_film(
        tmp_path / "v.mkv", times_ms=times, sound=tone(3, (1,)), sound_codec="pcm_s16le"
    )
    run(path, out=tmp_path / "o.mp4", masks=tmp_path / "m")
    _, kept = frames_of(tmp_path / "o.mp4")
    assert kept == [Fraction(t, 1000) for t in times]
    heard = [bool(mask.any()) for mask in masks_in(tmp_path / "m")]
    assert heard == [1000 <= t < 2000 for t in times]


@pytest.mark.parametrize("name", ["v.ts", "v.avi"])
def test_recorders_containers(tmp_path: Path, name: str) -> None:
    """MPEG-TS, whose times begin at 1.4 s, and AVI, whose times are whole packets."""
    codecs = ("libx264", "aac") if name == "v.ts" else ("mpeg4", "mp3")
    path = write_film(tmp_path / name, sound=tone(3, (1,)), codec=codecs[0], sound_codec=codecs[1])
    run(path, out=tmp_path / "o.mp4", masks=tmp_path / "m")
    times, given = (np.array(frames_of(p)[1], float) for p in (tmp_path / "o.mp4", path))
    np.testing.assert_allclose(np.diff(times), np.diff(given), atol=1e-4)
    assert 0 <= times[0] < 0.05 and len(sound_of(tmp_path / "o.mp4")) > 100
    masks = masks_in(tmp_path / "m")
    for mask, time_s in zip(masks, times, strict=True):
        if time_s < 2:  # the tone's end lies some milliseconds in the third second
            assert bool(mask.any()) == (time_s >= 1), time_s


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),  # a phone held upright
        ((0, -1, 1, 0), lambda p: np.rot90(p)),
        ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
        ((-1, 0, 0, 1), np.fliplr),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    ],
)
def test_display_matrix(film: Path, tmp_path: Path, matrix: Any, turned: Any) -> None:
    path = with_matrix(film, tmp_path / "turned.mp4", *matrix)
    run(path, out=tmp_path / "o.mp4", masks=tmp_path / "m")
    for k in (10, 14):
        mask = masks_in(tmp_path / "m")[k]
        assert mask.shape == turned(square(k, SIZE)).shape
        assert (mask ^ turned(square(k, SIZE))).sum() <= 4 * SIDE
    with av.open(str(tmp_path / "o.mp4")) as container:
        shown = next(container.decode(video=0))
        assert shown.rotation == 0, "turned once, not twice"
        assert (shown.height, shown.width) == turned(square(0, SIZE)).shape


def test_odd_sizes_are_completed(tmp_path: Path) -> None:
    path = write_film(tmp_path / "odd.mkv", size=(97, 63), sound=tone(3, (1,)))
    result = run(path, out=tmp_path / "o.mp4", masks=tmp_path / "m")
    assert frames_of(tmp_path / "o.mp4")[0][0].shape == (64, 98, 3)
    assert masks_in(tmp_path / "m")[0].shape == (63, 97)
    assert any("97x63 became 98x64" in note for note in result.notes)


def test_sound_shorter_than_the_video(tmp_path: Path) -> None:
    path = write_film(tmp_path / "s.mp4", seconds=4, sound=tone(1.5, (0, 1)))
    result = run(path, masks=tmp_path / "m")
    heard = [bool(mask.any()) for mask in masks_in(tmp_path / "m")]
    assert heard == [True] * 20 + [False] * 20
    assert any("sound ends after 1.5 s" in note for note in result.notes)


def test_no_sound(tmp_path: Path) -> None:
    path = write_film(tmp_path / "mute.mp4")
    with pytest.raises(DataError, match=r"no sound(.|\n)*--silent"):
        run(path, out=tmp_path / "o.mp4")
    result = run(path, out=tmp_path / "o.mp4", silent=True)
    assert any("no sound" in note for note in result.notes) and result.frames == 30
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert not container.streams.audio


@pytest.mark.parametrize(
    ("ending", "sound_codec", "copied"),
    [
        (".mp4", "pcm_s16le", False),
        (".mp4", "mp3", True),
        (".mkv", "pcm_s16le", True),
        (".webm", "aac", False),
        (".webm", "mp3", False),
    ],
)
def test_sound_in_other_containers(
    tmp_path: Path, ending: str, sound_codec: str, copied: bool
) -> None:
    path = write_film(tmp_path / "s.mkv", sound=tone(3, (1,)), sound_codec=sound_codec)
    result = run(path, out=tmp_path / f"o{ending}")
    assert any("encoded again" in note for note in result.notes) != copied
    assert (sound_of(tmp_path / f"o{ending}") == sound_of(path)) == copied
    before, after = read_video_sound(path), read_video_sound(tmp_path / f"o{ending}")
    assert abs(before.size - after.size) < 1600
    loud = [
        np.sqrt(np.mean(after[k * 16_000 + 2000 : (k + 1) * 16_000 - 2000] ** 2)) for k in range(2)
    ]
    assert loud[0] < 0.01 and loud[1] == pytest.approx(0.5 / np.sqrt(2), rel=0.08)
    assert len(frames_of(tmp_path / f"o{ending}")[0]) == 30


def test_encoders_in_order_of_preference(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = av.CodecContext.create
    missing = {"libx264"}

    def fake(name: str, mode: str) -> Any:
        if name in missing:
            raise ValueError(name)
        return create(name, mode)

    monkeypatch.setattr(av, "CodecContext", type("Context", (), {"create": staticmethod(fake)}))
    result = run(film, out=tmp_path / "o.mp4")
    assert any("no libx264" in note for note in result.notes)
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.video[0].codec_context.name in ("h264", "mpeg4")
    assert frames_of(tmp_path / "o.mp4")[1] == frames_of(film)[1]
    missing |= {"libopenh264", "mpeg4"}
    with pytest.raises(BackendError, match=r"no video encoder(.|\n)*libx264 or libopenh264"):
        run(film, out=tmp_path / "p.mp4")
