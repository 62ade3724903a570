"""Reading of sound files as 16 kHz mono waveforms, and the one-second windows of frames."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from save_deploy.data.downmix import names_of_file, to_mono
from save_deploy.data.log_mel import EXAMPLE_SAMPLES, SAMPLE_RATE_HZ
from save_deploy.errors import DataError

Waveform = NDArray[np.float32]
MIN_SECONDS = 0.025  # one STFT window
EXAMPLE_SECONDS = EXAMPLE_SAMPLES / SAMPLE_RATE_HZ  # 0.975: length of one VGGish example
SILENCE = 1e-4  # root mean square below which a sound is silent (-80 dB)
# the C++ runtime has the same limits
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_CHANNELS = 1024
MAX_SAMPLES = 2**30  # over all channels; a few kilobytes of FLAC can hold hours of silence
UNREADABLE = "sound file cannot be read"
_GET_CHANNEL_MAP = 0x1100  # SFC_GET_CHANNEL_MAP_INFO of sndfile.h
_PIECE = 2**16  # samples per channel and read
# Defaults of torchaudio.functional.resample: zero crossings of the sinc on each side, and the share
# of the lower Nyquist frequency that passes.
ZERO_CROSSINGS, ROLLOFF = 6, 0.99


def read_waveform(
    path: Path, *, min_seconds: float = MIN_SECONDS, seconds: float = math.inf, hint: str = ""
) -> Waveform:
    """Read a sound file as float32 (n,), mono at 16 kHz in [-1,1].

    Supports every format of libsndfile. Channels are mixed as FFmpeg does (data/downmix.py), other
    sampling rates resampled.
    seconds: read at least so much from the start, and not all of a longer sound.
    hint: remedy in the error for a short sound.
    Raises DataError for a file that is missing, unreadable, not finite, at a rate outside 1 to 768
    kHz, longer than MAX_SAMPLES, or shorter than min_seconds.
    """
    if not os.path.isfile(path):
        raise DataError("sound file not found", got=str(path), expected="wav, flac or ogg")
    try:
        waveform, rate_hz = _read(path, seconds)
    except (OSError, RuntimeError) as error:  # those of libsndfile are RuntimeErrors
        raise _unreadable(UNREADABLE, path, error) from error
    if waveform.size < min_seconds * rate_hz:
        raise DataError(
            "sound is too short",
            got=f"{waveform.size / rate_hz:.3f} s in {path}",
            expected=f"{min_seconds:.3f} s or more",
            hint=hint,
        )
    if not np.isfinite(waveform).all():
        raise DataError(
            "sound contains NaN or infinite samples", got=str(path), expected="finite samples"
        )
    return resample(waveform, rate_hz)


def _read(path: Path, seconds: float) -> tuple[Waveform, int]:
    """Return the mixed channels, float32 (n,), and the sampling rate.

    Reads in pieces up to the end, because the length in a header can be missing or wrong.
    libsndfile cannot seek in such a file, but soundfile seeks after every read unless `seekable` is
    False.
    """
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
        def seekable(self) -> bool:
            return False

    pieces: list[Waveform] = []
    # not by its name: libsndfile takes any bytes in a file called .au, .gsm or .vox for sound
    with path.open("rb") as opened, Forward(opened.fileno(), closefd=False) as file:
        check_rate(file.samplerate)
        if not 1 <= file.channels <= MAX_CHANNELS:
            raise DataError(
                "wrong number of channels",
                got=f"{file.channels} in {path}",
                expected=f"1 to {MAX_CHANNELS}",
            )
        names = names_of_file(file.format, file.channels, _channel_map(file))
        for at in range(0, MAX_SAMPLES // file.channels + 1, _PIECE):
            try:
                piece = file.read(_PIECE, dtype="float32", always_2d=True)  # (n,channels)
            except RuntimeError as error:  # it is a sound file, which nobody else may guess at
                raise _unreadable("sound file is damaged", path, error) from error
            pieces.append(to_mono(piece, names))
            if len(piece) < _PIECE or at + _PIECE >= seconds * file.samplerate:
                return np.concatenate(pieces), file.samplerate
    raise DataError(
        "sound is too long", got=str(path), expected=f"at most {MAX_SAMPLES} samples in all"
    )


def _unreadable(what: str, path: Path, error: Exception) -> DataError:
    reason = getattr(error, "error_string", error)  # without the number of the open file
    return DataError(what, got=f"{path}: {reason}", expected="wav, flac or ogg")


def _channel_map(file: Any) -> list[int]:
    """libsndfile's number of the place of every channel, [] where the file does not say. soundfile has
    no name for this call."""
    import soundfile

    numbers = soundfile._ffi.new("int[]", file.channels)
    size = file.channels * soundfile._ffi.sizeof("int")
    found = soundfile._snd.sf_command(file._file, _GET_CHANNEL_MAP, numbers, size)
    return list(numbers) if found else []


def name_of(path: Path) -> str | bytes:
    """Return a path as libsndfile takes it: bytes, which need not be UTF-8, or text on Windows."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def check_rate(rate_hz: int) -> None:
    """Raise DataError for a sampling rate outside 1 to 768 kHz."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise DataError(
            "sample rate out of range",
            got=f"{rate_hz} Hz",
            expected=f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz",
        )


def resample(waveform: Waveform, rate_hz: int) -> Waveform:
    """Resample to 16 kHz: float32 (n,) at rate_hz -> float32 (n * 16000 / rate_hz,).

    Uses the windowed sinc of torchaudio.functional.resample with its defaults; the results are
    equal within 1e-6. Output k of every period of `n_phases` outputs uses the same kernel, so only
    one kernel at a time is in memory, at any rate. torchaudio holds all of them, padded to a whole
    period.
    Raises DataError for a rate outside 1 to 768 kHz.
    """
    check_rate(rate_hz)
    sound = np.ascontiguousarray(waveform, np.float32)
    if rate_hz == SAMPLE_RATE_HZ or not sound.size:
        return sound
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    period, n_phases = rate_hz // divisor, SAMPLE_RATE_HZ // divisor  # inputs, outputs
    resampled = np.empty(_resampled_size(sound.size, period, n_phases), np.float32)
    margin = math.ceil(ZERO_CROSSINGS * period / (min(period, n_phases) * ROLLOFF))
    padded = np.pad(sound, (margin, margin + period + 1))
    for phase in range(min(n_phases, resampled.size)):
        first, kernel = _kernel(phase, period, n_phases)
        # (periods,taps): inputs of each output of this phase
        windows = sliding_window_view(padded, kernel.size)[margin + first :: period]
        outputs = resampled[phase::n_phases]
        outputs[:] = windows[: outputs.size] @ kernel
    return resampled


def _resampled_size(n: int, period: int, n_phases: int) -> int:
    """Return the output size of n samples.

    torchaudio rounds to float32 before it rounds up, and computes only whole periods.
    """
    return min(math.ceil(np.float32(n_phases * n / period)), n_phases * (n // period + 1))


def _kernel(phase: int, period: int, n_phases: int) -> tuple[int, Waveform]:
    """Return the kernel of output `phase` of a period.

    Its first input, counted from the start of the period, and float32 weights (taps,).
    Computed in float32 in torchaudio's order of operations: for rates with few common divisors its
    phases have rounding errors of up to 1e-3 of a zero crossing, and an exact kernel would give
    other samples. Inputs outside the window, of weight at most 1e-15, are left out.
    """
    base = min(period, n_phases) * ROLLOFF
    center, reach = phase / n_phases, ZERO_CROSSINGS / base  # in periods
    first, last = math.floor((center - reach) * period), math.ceil((center + reach) * period)
    inputs = np.arange(first, last + 1, dtype=np.float32) / np.float32(period)
    t = (np.float32(-phase) / np.float32(n_phases) + inputs) * np.float32(base)
    t = np.clip(t, np.float32(-ZERO_CROSSINGS), np.float32(ZERO_CROSSINGS))
    pi = np.float32(np.pi)
    window = np.cos(t * pi / np.float32(ZERO_CROSSINGS) / np.float32(2)) ** 2
    t *= pi
    sinc = np.divide(np.sin(t), t, out=np.ones_like(t), where=t != 0)
    return first, sinc * (window * np.float32(base / period))


def second(waveform: Waveform, index: int = 0) -> Waveform:
    """Return the one-second window of frame `index`, (16000,).

    It starts where AVSBench's example does: example i at 0.96 i s (SPEC 3). A shorter sound is
    padded with silence. Past the end of the sound the last full second is used, as AVSBench repeats
    its last example.
    """
    start = int(0.96 * SAMPLE_RATE_HZ) * index
    start = min(start, max(0, waveform.size - SAMPLE_RATE_HZ))
    window = waveform[start : start + SAMPLE_RATE_HZ]
    return np.pad(window, (0, SAMPLE_RATE_HZ - window.size)).astype(np.float32)


def is_silent(waveform: Waveform) -> bool:
    """Return True for a sound below -80 dB, whose mask would not depend on the sound."""
    return bool(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))) < SILENCE)
