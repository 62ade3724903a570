"""Sounds people have: stereo at 44.1 kHz, short, silent, broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from save_deploy.data.audio import read_waveform, second
from save_deploy.errors import DataError


def sine(rate: int, seconds: float, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(
        np.float32
    )


def test_stereo_44100_becomes_mono_16000(tmp_path: Path) -> None:
    """Left and right are averaged; a 440 Hz tone stays one."""
    left = sine(44_100, 2.0)
    soundfile.write(tmp_path / "s.wav", np.stack([left, np.zeros_like(left)], axis=1), 44_100)
    wave = read_waveform(tmp_path / "s.wav")
    assert wave.dtype == np.float32 and wave.shape == (32_000,)
    middle = slice(4000, 28_000)
    np.testing.assert_allclose(wave[middle], 0.5 * sine(16_000, 2.0)[middle], atol=5e-3)


def test_16_khz_is_read_unchanged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", sine(16_000, 1.0), 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_waveform(tmp_path / "s.wav"), sine(16_000, 1.0))


def test_short_sound_is_completed_with_silence() -> None:
    window = second(sine(16_000, 0.3))
    assert window.shape == (16_000,)
    assert window[:4800].any() and not window[4800:].any()


def test_windows_start_where_avsbench_examples_do() -> None:
    wave = np.arange(5 * 16_000, dtype=np.float32)
    assert [int(second(wave, i)[0]) for i in range(6)] == [
        0,
        15_360,
        30_720,
        46_080,
        61_440,
        64_000,
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (b"RIFFxxxxWAVEjunk", "cannot be read"), (None, "not found")],
)
def test_broken_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "s.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_waveform(path)


def test_nan_and_too_short(tmp_path: Path) -> None:
    soundfile.write(
        tmp_path / "n.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT"
    )
    with pytest.raises(DataError, match="NaN"):
        read_waveform(tmp_path / "n.wav")
    soundfile.write(tmp_path / "t.wav", np.zeros(100, np.float32), 16_000)
    with pytest.raises(DataError, match="too short"):
        read_waveform(tmp_path / "t.wav")
