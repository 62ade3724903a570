"""Several channels become one as FFmpeg mixes them, whoever reads: compared with libswresample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from save_deploy.data.audio import read_waveform
from save_deploy.data.downmix import mono_weights, names_of_file, to_mono
from save_deploy.data.sound import read_sound
from save_deploy.errors import DataError
from tests.data.test_film import Track, write_film

RATE = 16_000
LAYOUTS = (
    "mono stereo 2.1 3.0 3.0(back) 4.0 quad quad(side) 3.1 5.0 5.0(side) 4.1 5.1 5.1(side) 6.0 "
    "6.0(front) hexagonal 6.1 6.1(back) 6.1(front) 7.0 7.0(front) 7.1 7.1(wide) 7.1(wide-side) 5.1.2 "
    "7.1.2 octagonal cube hexadecagonal"
).split()


def one_by_one(n: int, length: int) -> np.ndarray:
    """A tone of half the full scale in each of n channels in turn: (n*length,n)."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(length) / RATE)
    samples = np.zeros((n * length, n), np.float32)
    for channel in range(n):
        samples[channel * length : (channel + 1) * length, channel] = tone
    return samples


def loudness(sound: np.ndarray, n: int, length: int) -> np.ndarray:
    """Of each channel's part in the mix, 1 = as loud as the channel alone: (n,)."""
    middle = sound[: n * length].reshape(n, length)[:, length // 4 : -length // 4]
    return np.sqrt(2 * np.mean(np.square(middle, dtype=np.float64), axis=1)) / 0.5


def mixed_by_ffmpeg(frames: Any) -> np.ndarray:
    """To mono in 16 bits, where libswresample divides the weights by their sum."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    parts = [part for frame in frames for part in resampler.resample(frame)]
    parts += resampler.resample(None)
    return np.concatenate([part.to_ndarray().ravel() for part in parts]) / 32768


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_those_of_libswresample(name: str) -> None:
    layout = av.AudioLayout(name)
    n = layout.nb_channels
    given = np.rint(one_by_one(n, 800) * 32768).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(given.reshape(1, -1), format="s16", layout=name)
    frame.rate = RATE
    names = [channel.name for channel in layout.channels]
    weights = mono_weights(n, names)
    np.testing.assert_allclose(weights, loudness(mixed_by_ffmpeg([frame]), n, 800), atol=2e-3)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        loudness(to_mono(one_by_one(n, 800), names), n, 800), weights, atol=1e-5
    )


KINDS: tuple[tuple[str, dict[str, str]], ...] = (
    ("WAV", {}), ("WAVEX", {}), ("FLAC", {}), ("OGG", {"subtype": "VORBIS"}),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "how"), KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8])
def test_files_are_mixed_as_by_ffmpeg(
    tmp_path: Path, kind: str, how: dict[str, str], n: int
) -> None:
    """Whatever the file says of its channels, and wherever its kind puts the center. Three channels of
    a WAV, whose places nobody knows, are averaged."""
    path = tmp_path / "sound"
    soundfile.write(path, one_by_one(n, 4000), RATE, format=kind, **how)
    found = loudness(read_waveform(path), n, 4000)
    if kind.startswith("WAV") and n == 3:
        np.testing.assert_allclose(found, 1 / 3, atol=1e-3)
        return
    with av.open(str(path)) as container:
        expected = loudness(mixed_by_ffmpeg(container.decode(audio=0)), n, 4000)
    np.testing.assert_allclose(found, expected, atol=6e-3)


@pytest.mark.parametrize("layout", ["5.1", "5.1(side)", "7.1"])
def test_a_film_is_heard_as_a_file(tmp_path: Path, layout: str) -> None:
    """The center of a 5.1 film at 0.29 of its loudness, not a sixth; its effects channel not at all."""
    n = av.AudioLayout(layout).nb_channels
    samples = one_by_one(n, 8000)
    film = write_film(tmp_path / "f.mkv", [Track(samples, "pcm_s16le", layout)], seconds=n / 2)
    found = loudness(read_sound(film), n, 8000)
    soundfile.write(tmp_path / "s.flac", samples, RATE)
    np.testing.assert_allclose(found, loudness(read_sound(tmp_path / "s.flac"), n, 8000), atol=5e-3)
    assert found[3] == 0
    if n == 6:
        assert found[2] == pytest.approx(1 / (2 + np.sqrt(2)), abs=2e-3)


def test_layouts_without_a_matrix_are_averaged() -> None:
    for n, text in ((2, "FL LFE"), (4, "W X Y Z"), (3, ""), (9, ""), (2, "FL FL")):
        np.testing.assert_array_equal(mono_weights(n, text.split()), np.full(n, np.float32(1 / n)))
    assert names_of_file("WAV", 2, [-1, 99]) == ("", "")


def test_what_is_not_heard_may_hold_anything() -> None:
    surround = np.zeros((4, 6), np.float32)
    surround[:, 3] = np.nan  # the low frequencies
    assert not to_mono(surround).any()


def test_one_reader_for_sounds_and_films(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sound file not found"):
        read_sound(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("no sound at all")
    with pytest.raises(DataError, match="sound file cannot be read"):
        read_sound(tmp_path / "text.wav")
    silent = write_film(tmp_path / "silent.mkv")
    with pytest.raises(DataError, match="no sound in the video"):
        read_sound(silent)
    short = write_film(tmp_path / "short.mkv", [Track(one_by_one(1, 1600), "pcm_s16le", "mono")])
    with pytest.raises(DataError, match=r"too short(.|\n)*try that"):
        read_sound(short, min_seconds=1, hint="try that")
