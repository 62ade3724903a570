"""Sound files -> 16 kHz mono waveforms, and the one-second windows the model hears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.log_mel import EXAMPLE_SAMPLES, SAMPLE_RATE_HZ
from save_deploy.errors import DataError

Waveform = NDArray[np.float32]
MIN_SECONDS = 0.025  # one STFT window
EXAMPLE_SECONDS = EXAMPLE_SAMPLES / SAMPLE_RATE_HZ  # 0.975: what VGGish hears at once
SILENCE = 1e-4  # root mean square below which nothing is heard (-80 dB)


def read_waveform(path: Path, *, min_seconds: float = MIN_SECONDS, hint: str = "") -> Waveform:
    """Any file libsndfile reads -> float32 (n,) mono at 16 kHz in [-1,1].

    Channels are averaged, other rates resampled. Raises DataError for a file that is missing,
    unreadable, not finite, or shorter than min_seconds (then `hint` is the cure it names).
    """
    import soundfile

    if not path.is_file():
        raise DataError("sound file not found", got=str(path), expected="wav, flac or ogg")
    try:
        samples, rate_hz = soundfile.read(
            str(path), dtype="float32", always_2d=True
        )  # (n,channels)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(
            "sound file cannot be read", got=f"{path}: {error}", expected="wav, flac or ogg"
        ) from error
    waveform = samples.mean(axis=1)
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


def resample(waveform: Waveform, rate_hz: int) -> Waveform:
    """(n,) at rate_hz -> (n * 16000 / rate_hz,) at 16 kHz (torchaudio's windowed sinc)."""
    if rate_hz == SAMPLE_RATE_HZ:
        return np.ascontiguousarray(waveform, np.float32)
    import torch
    from torchaudio.functional import resample as sinc_resample

    tensor = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    return sinc_resample(tensor, rate_hz, SAMPLE_RATE_HZ).numpy()


def second(waveform: Waveform, index: int = 0) -> Waveform:
    """The 1 s window heard with frame `index`: (16000,), starting where AVSBench's example does.

    Example i starts at 0.96 i s (SPEC 3). A shorter sound is completed with silence; past its end
    the last full second is used, as AVSBench repeats its last example.
    """
    start = int(0.96 * SAMPLE_RATE_HZ) * index
    start = min(start, max(0, waveform.size - SAMPLE_RATE_HZ))
    window = waveform[start : start + SAMPLE_RATE_HZ]
    return np.pad(window, (0, SAMPLE_RATE_HZ - window.size)).astype(np.float32)


def is_silent(waveform: Waveform) -> bool:
    """True when there is nothing to hear: the mask can then say nothing about sound."""
    return bool(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))) < SILENCE)
