"""Sounds people have: stereo at 44.1 kHz, odd rates, short, silent, broken."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from save_deploy.data import audio
from save_deploy.data.audio import read_waveform, resample, second
from save_deploy.data.sound import read_sound
from save_deploy.errors import DataError
from tests import command


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


def with_length(path: Path, n: int) -> Path:
    """The FLAC file says that it holds n samples: 36 bits of its first block."""
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | n >> 32
    content[22:26] = (n & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("claimed", [0, 2**36 - 1, 200_000])
def test_flac_of_unknown_or_wrong_length(tmp_path: Path, claimed: int) -> None:
    """An encoder that writes to a pipe leaves 0: what is there is read, what is not gets no memory."""
    sound = sine(16_000, 10.0)
    soundfile.write(tmp_path / "s.flac", sound, 16_000)
    found = read_waveform(with_length(tmp_path / "s.flac", claimed))
    np.testing.assert_allclose(found, sound, rtol=0, atol=2 / 2**15)


@pytest.mark.parametrize("rate", [1, 999, 768_001])
def test_rate_in_a_header_is_checked_first(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "s.wav", sine(16_000, 1.0), rate)
    with pytest.raises(DataError, match=f"out of range\n.*{rate} Hz"):
        read_waveform(tmp_path / "s.wav")


def test_sound_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a megabyte of FLAC holds 2^30 samples of silence; the limit is lowered here."""
    monkeypatch.setattr(audio, "MAX_SAMPLES", 2**18)
    soundfile.write(tmp_path / "s.flac", np.zeros((2**18, 2), np.float32), 16_000)
    with pytest.raises(DataError, match=r"too long(.|\n)*at most 262144 samples"):
        read_waveform(tmp_path / "s.flac")
    soundfile.write(tmp_path / "t.flac", np.zeros((2**17 - 1, 2), np.float32), 16_000)
    assert read_waveform(tmp_path / "t.flac").size == 2**17 - 1


@pytest.mark.parametrize(
    "rate", [1000, 8000, 11_025, 12_345, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000, 768_000]
)
@pytest.mark.parametrize("seconds", [0.003, 0.4, 1.3])
def test_resampling_equals_torchaudio(rate: int, seconds: float) -> None:
    """Within 1e-6 and of the same length, on noise over the whole range."""
    functional = pytest.importorskip("torchaudio.functional")
    torch = pytest.importorskip("torch")
    sound = np.random.default_rng(0).uniform(-1, 1, round(rate * seconds)).astype(np.float32)
    reference = functional.resample(torch.from_numpy(sound), rate, 16_000).numpy()
    found = resample(sound, rate)
    assert found.dtype == np.float32 and found.shape == reference.shape
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "size", "expected"),
    [
        (8000, 120, [0.00039807212, 0.061685577, 0.3382647, 0.49871653, 0.27877632]),
        (44_100, 22, [0.039299291, 0.36147058, -0.41902763, 0.45774931, 0.49916369]),
        (44_101, 22, [0.039300438, 0.36147678, -0.41905323, 0.45771164, 0.49917832]),
    ],
)
def test_resampling_equals_stored_values(rate: int, size: int, expected: list[float]) -> None:
    """torchaudio 2.11's samples 0, 1, 5, 10, 17; the C++ runtime is tested against the same ones.
    At 44,101 Hz torchaudio needs 2.8 GB and a minute."""
    found = resample((0.5 * np.sin(0.3 * np.arange(60))).astype(np.float32), rate)
    assert found.shape == (size,)
    np.testing.assert_allclose(found[[0, 1, 5, 10, 17]], expected, rtol=0, atol=1e-6)


def test_resampling_differs_from_an_exact_kernel_at_odd_rates() -> None:
    """The twin of the stored values: 44,101 Hz taken for 44,100 Hz is told apart."""
    sound = (0.5 * np.sin(0.3 * np.arange(60))).astype(np.float32)
    assert np.abs(resample(sound, 44_100) - resample(sound, 44_101)).max() > 1e-5


@pytest.mark.thorough
def test_resampling_at_an_odd_rate_takes_little_memory() -> None:
    """Beside the sound itself: its padded copy and one kernel, not the kernels of 16,000 phases."""
    sound = np.zeros(44_101, np.float32)
    tracemalloc.start()
    resample(sound, 44_101)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("rate", [0, 999, 768_001])
def test_rates_out_of_range(rate: int) -> None:
    with pytest.raises(DataError, match=f"out of range\\n.*{rate} Hz\\n.*1000 to 768000 Hz"):
        resample(np.zeros(100, np.float32), rate)


def test_lack_of_memory_has_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resample(*_: object) -> None:
        raise MemoryError

    Image.new("RGB", (8, 8)).save(tmp_path / "f.png")
    soundfile.write(tmp_path / "s.wav", sine(44_100, 1.0), 44_100)
    monkeypatch.setattr(audio, "resample", resample)
    done = command.run("mask", "none", "f.png", "s.wav", "-o", "m.png", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: not enough memory for this input\n")


@pytest.mark.parametrize("suffix", ["raw", "au", "gsm", "vox", "flac", "RAW", ""])
def test_the_name_says_nothing(tmp_path: Path, suffix: str) -> None:
    """libsndfile takes any bytes in a file of some names for sound; soundfile wants a rate."""
    sound, path = sine(16_000, 1.0), tmp_path / f"s.{suffix}"
    soundfile.write(tmp_path / "s.wav", sound, 16_000, subtype="FLOAT")
    (tmp_path / "s.wav").rename(path)
    np.testing.assert_array_equal(read_waveform(path), sound)
    path.write_bytes(np.random.default_rng(0).bytes(50_000))
    with pytest.raises(DataError, match="cannot be read") as refused:
        read_waveform(path)
    assert str(path) in str(refused.value)


def test_a_damaged_sound_is_read_by_nobody(tmp_path: Path) -> None:
    """FFmpeg would pass over the bad frame of a FLAC; the C++ program refuses it."""
    path = tmp_path / "s.flac"
    soundfile.write(path, sine(16_000, 4.0), 16_000)
    content = bytearray(path.read_bytes())
    content[len(content) * 4 // 5] ^= 0x55
    path.write_bytes(content)
    for read in (read_waveform, read_sound):
        with pytest.raises(DataError, match="damaged"):
            read(path)


def test_the_start_of_a_long_sound(tmp_path: Path) -> None:
    """What follows is not read: neither its length nor its damage costs anything."""
    sound = sine(16_000, 20.0)
    sound[300_000] = np.nan
    soundfile.write(tmp_path / "s.wav", sound, 16_000, subtype="FLOAT")
    found = read_waveform(tmp_path / "s.wav", seconds=2.0)
    assert 32_000 <= found.size <= 100_000
    np.testing.assert_array_equal(found, sound[: found.size])
    with pytest.raises(DataError, match="NaN"):
        read_waveform(tmp_path / "s.wav")
