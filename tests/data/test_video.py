"""Videos: the frame at a time, the sound from the start, and files that are none."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from save_deploy.data.video import read_video_frames, read_video_sound
from save_deploy.errors import DataError
from tests.data import trees


def levels(path: Path, times: list[float]) -> list[float]:
    return [float(frame.mean()) for frame in read_video_frames(path, times)]


def test_frame_at_or_before_a_time(tmp_path: Path) -> None:
    """At 16 per second, frame k has level 2k and is shown from k/16 s."""
    trees.write_video(tmp_path / "v.mp4", seconds=3)
    times = [15 / 16, 1.0, 1.06, 1.07, 0.0, 2.5]
    np.testing.assert_allclose(levels(tmp_path / "v.mp4", times), [30, 32, 32, 34, 0, 80], atol=1.2)


def test_any_order_and_beyond_both_ends(tmp_path: Path) -> None:
    trees.write_video(tmp_path / "v.mp4", seconds=2)
    got = levels(tmp_path / "v.mp4", [99.0, 1.0, -1.0, 1.0, 4 + 15 / 16])
    np.testing.assert_allclose(got, [62, 32, 0, 32, 62], atol=1.2)


def test_another_rate_and_size(tmp_path: Path) -> None:
    """AVSBench's times at 25 per second: frame floor(25 (i + 15/16))."""
    trees.write_video(tmp_path / "v.mp4", seconds=3, fps=25, size=(48, 80))
    frames = read_video_frames(tmp_path / "v.mp4", [i + 15 / 16 for i in range(3)])
    assert {f.shape for f in frames} == {(80, 48, 3)} and frames[0].dtype == np.uint8
    np.testing.assert_allclose([f.mean() for f in frames], [46, 96, 146], atol=1.2)


def test_channel_order_is_rgb(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        red = np.zeros((32, 32, 3), np.uint8)
        red[..., 0] = 220
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, "rgb24")))
        container.mux(stream.encode(None))
    (frame,) = read_video_frames(tmp_path / "v.mp4", [0])
    assert frame[..., 0].mean() > 180 and frame[..., 1:].mean() < 40


def test_only_asked_frames_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is converted to pixels, and decoding stops after the last one asked for."""
    from save_deploy.data import video

    trees.write_video(tmp_path / "v.mp4", seconds=4)
    converted = []
    pixels = video.pixels
    monkeypatch.setattr(
        video, "pixels", lambda f, turn: converted.append(f.time) or pixels(f, turn)
    )
    read_video_frames(tmp_path / "v.mp4", [0.5, 1.0])
    assert converted == [0.5, 1.0]


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_stereo_is_averaged_and_resampled(tmp_path: Path, rate: int) -> None:
    """A tone left, another right: each at half its loudness, in time with the video."""
    t = np.arange(3 * rate) / rate
    both = np.stack([0.6 * np.sin(2 * np.pi * 500 * t), 0.4 * np.sin(2 * np.pi * 1250 * t)])
    trees.write_video(tmp_path / "v.mp4", seconds=3, sound=both, rate=rate)
    got = read_video_sound(tmp_path / "v.mp4")
    assert got.dtype == np.float32 and got.ndim == 1 and abs(got.size - 48_000) < 2100
    t = np.arange(48_000) / 16_000
    middle = slice(8_000, 40_000)
    for hz, loudness in ((500, 0.3), (1250, 0.2)):
        # projection on the tone with its phase: late or early sound would lower the sine part
        sine = 2 * np.mean(got[middle] * np.sin(2 * np.pi * hz * t[middle]))
        assert sine == pytest.approx(loudness, abs=0.02)


def test_loudest_sound_stays_in_range(tmp_path: Path) -> None:
    square = np.sign(np.sin(2 * np.pi * 300 * np.arange(32_000) / 16_000))[None]
    trees.write_video(tmp_path / "v.mp4", seconds=2, sound=square, rate=16_000)
    assert np.abs(read_video_sound(tmp_path / "v.mp4")).max() <= 1.0


def test_sound_that_starts_late_is_preceded_by_silence(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=4)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for _ in range(12):
            black = np.zeros((32, 32, 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(black, "rgb24")))
        container.mux(video.encode(None))
        loud = np.full((1, 16_000), 8000, np.int16)
        frame = av.AudioFrame.from_ndarray(loud, "s16", "mono")
        frame.rate, frame.pts = 16_000, 24_000  # 1.5 s
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    got = read_video_sound(path)
    assert abs(int(np.flatnonzero(np.abs(got) > 0.1)[0]) - 24_000) < 32


def test_files_that_are_no_video(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    for read in (lambda p: read_video_frames(p, [0]), read_video_sound):
        with pytest.raises(DataError, match=r"video not found[^$]*v.mp4"):
            read(path)
    for content in (b"", b"not a video at all" * 50):
        path.write_bytes(content)
        for read in (lambda p: read_video_frames(p, [0]), read_video_sound):
            with pytest.raises(DataError, match=r"video cannot be read[^$]*v.mp4"):
                read(path)
    trees.write_video(path, seconds=2, sound=trees.sound("x", 2)[None], rate=16_000)
    path.write_bytes(path.read_bytes()[:-2000])  # the index at the end is gone
    with pytest.raises(DataError, match="video cannot be read"):
        read_video_frames(path, [0])


def test_missing_streams_and_short_sound(tmp_path: Path) -> None:
    trees.write_video(tmp_path / "mute.mp4", seconds=1)
    with pytest.raises(DataError, match=r"no sound in the video[^$]*mute.mp4"):
        read_video_sound(tmp_path / "mute.mp4")
    trees.write_wav(tmp_path / "only.wav", 1)
    with pytest.raises(DataError, match=r"no video in the file[^$]*only.wav"):
        read_video_frames(tmp_path / "only.wav", [0])
    trees.write_video(
        tmp_path / "short.mp4", seconds=1, sound=trees.sound("x", 0.5)[None], rate=16_000
    )
    with pytest.raises(DataError, match=r"sound is too short[^$]*short.mp4"):
        read_video_sound(tmp_path / "short.mp4", min_seconds=0.975)


def test_display_matrix_is_applied(tmp_path: Path) -> None:
    """Phones store what the sensor gave and how to turn it: a corner ends where players show it."""
    from tests.runtime.films import with_matrix

    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        corner = np.zeros((32, 64, 3), np.uint8)
        corner[:8, :16] = 255  # upper left
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corner, "rgb24")))
        container.mux(stream.encode(None))
    expected = {  # matrix: size, and the first row and column of the corner
        (1, 0, 0, 1): (32, 64, 0, 0),
        (0, 1, -1, 0): (64, 32, 0, 24),  # a quarter clockwise: upper right
        (0, -1, 1, 0): (64, 32, 48, 0),
        (-1, 0, 0, -1): (32, 64, 24, 48),
        (-1, 0, 0, 1): (32, 64, 0, 48),
        (1, 0, 0, -1): (32, 64, 24, 0),
        (0, 1, 1, 0): (64, 32, 0, 0),
    }
    for matrix, where in expected.items():
        turned = with_matrix(path, tmp_path / "t.mp4", *matrix)
        (frame,) = read_video_frames(turned, [1.0])
        rows, columns = np.nonzero(frame.mean(axis=-1) > 128)
        assert (*frame.shape[:2], rows.min(), columns.min()) == where, matrix
