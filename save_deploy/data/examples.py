"""Log-mel examples of the frames of a clip, including frames past the end of the sound.

Example i starts at 0.96 i s (SPEC 3). Past the end AVSBench's S4 and MS3 repeat the last example.
AVSS appends arrays of zeros, which is not the log-mel of silence (-4.605170).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform
from save_deploy.data.log_mel import (
    EXAMPLE_FRAMES,
    EXAMPLE_SAMPLES,
    HOP,
    SAMPLE_RATE_HZ,
    log_mel_examples,
)

LogMel = NDArray[np.float32]
FILLS = ("repeat", "zeros")
EXAMPLE_STEP = EXAMPLE_FRAMES * HOP  # 15,360 samples: 0.96 s


def count_examples(n_samples: int) -> int:
    """Return the number of complete examples in n_samples, at least 1 (a short sound is padded)."""
    return max(1, (n_samples - EXAMPLE_SAMPLES) // EXAMPLE_STEP + 1)


def filled(examples: LogMel, n: int, fill: str) -> LogMel:
    """Return the first n examples, (m,1,96,64) -> (n,1,96,64); `fill` supplies missing ones."""
    if fill not in FILLS:
        raise ValueError(f"fill is {fill}; expected repeat or zeros")
    if len(examples) >= n:
        return examples[:n]
    last = examples[-1:] if fill == "repeat" else np.zeros_like(examples[-1:])
    return np.concatenate([examples, np.repeat(last, n - len(examples), axis=0)])


def log_mels(waveform: Waveform, n: int, fill: str) -> LogMel:
    """Return the examples of frames 0..n-1 of a waveform (k,): float32 (n,1,96,64)."""
    wanted = EXAMPLE_STEP * (n - 1) + EXAMPLE_SAMPLES
    return filled(log_mel_examples(_completed(waveform[:wanted])), n, fill)


def example_at(waveform: Waveform, index: int, fill: str) -> LogMel:
    """Return the example of frame `index`, float32 (1,96,64); equals log_mels(...)[index]."""
    last = count_examples(waveform.size) - 1
    if index > last and fill == "zeros":
        return np.zeros_like(log_mel_examples(np.zeros(EXAMPLE_SAMPLES))[0])
    start = EXAMPLE_STEP * min(index, last)
    return log_mel_examples(_completed(waveform[start : start + EXAMPLE_SAMPLES]))[0]


def second_is_example(waveform: Waveform, index: int) -> bool:
    """Return True when `second(waveform, index)` starts at the same sample as example `index`."""
    return index == 0 or EXAMPLE_STEP * index + SAMPLE_RATE_HZ <= waveform.size


def _completed(waveform: Waveform) -> Waveform:
    return np.pad(waveform, (0, max(0, EXAMPLE_SAMPLES - waveform.size)))
