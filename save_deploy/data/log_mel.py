"""VGGish log-mel examples of a waveform, identical to AVSBench (SPEC 3).

Magnitude STFT (25 ms window, 10 ms hop, periodic Hann, FFT 512, no centering), 64 HTK mel bands
125-7500 Hz, ln(mel + 0.01), examples of 96 frames without overlap, incomplete tail dropped.
Computed in float64, returned as float32. Silence is ln(0.01) = -4.605170 everywhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
WINDOW = 400
HOP = 160
FFT = 512
N_MELS = 64
MEL_LOW_HZ, MEL_HIGH_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01
# OpenBLAS computes a product of up to 2^18 multiplications on the calling thread. A larger one wakes
# its own threads, which then wait busily on the CPU cores of the model.
_PRODUCT_FRAMES = 8
EXAMPLE_FRAMES = 96
EXAMPLE_SAMPLES = (EXAMPLE_FRAMES - 1) * HOP + WINDOW  # 15,600 = 0.975 s, the minimum length


@lru_cache(maxsize=1)
def mel_filterbank() -> NDArray[np.float64]:
    """Return (257,64) triangular filters, linear in mel, not normalized, with DC row zero.

    Their sum is 230.9136.
    """
    to_mel = lambda hz: 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)
    bins = to_mel(np.arange(FFT // 2 + 1) * SAMPLE_RATE_HZ / FFT)[:, None]  # (257,1)
    edges = np.linspace(to_mel(MEL_LOW_HZ), to_mel(MEL_HIGH_HZ), N_MELS + 2)
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    weights = np.minimum((bins - lower) / (center - lower), (upper - bins) / (upper - center))
    weights = np.maximum(weights, 0.0)
    weights[0] = 0.0
    return weights


@lru_cache(maxsize=1)
def hann_window() -> NDArray[np.float64]:
    """Return a periodic Hann window, (400,)."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def log_mel_frames(waveform: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return log-mel frames (frames,64) of waveform (n,), 16 kHz mono in [-1,1].

    frames = 1 + (n - 400) // 160.
    """
    if waveform.ndim != 1 or waveform.shape[0] < WINDOW:
        raise ValueError(
            f"waveform of shape {waveform.shape}; expected 1-D with at least {WINDOW} samples"
        )
    windows = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), WINDOW)[::HOP]
    magnitude = np.abs(np.fft.rfft(windows * hann_window(), FFT))  # (frames,257)
    pieces = np.array_split(magnitude, -(-len(magnitude) // _PRODUCT_FRAMES))
    return np.log(np.concatenate([piece @ mel_filterbank() for piece in pieces]) + LOG_OFFSET)


def log_mel_examples(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return log-mel examples float32 (n_examples,1,96,64), (time, mel), of waveform (n,).

    waveform: 16 kHz mono in [-1,1].
    """
    frames = log_mel_frames(waveform)
    n_examples = frames.shape[0] // EXAMPLE_FRAMES
    kept = frames[: n_examples * EXAMPLE_FRAMES]
    return kept.reshape(n_examples, 1, EXAMPLE_FRAMES, N_MELS).astype(np.float32)
