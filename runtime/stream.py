"""Frames in order, masked as they come, with the audio side run once per second of sound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import WINDOW_SAMPLES
from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Frame, Mask
from save_deploy.errors import DataError
from save_deploy.runtime.pipeline import SavePipeline

# A whole waveform (n,), its seconds in order, or second -> what is heard in it. 16 kHz mono, [-1,1].
SoundSource = Waveform | Iterable[Waveform] | Callable[[int], Waveform]
ROUNDING_S = 1e-6  # times are floats: 2.9999999 is the third second


class Listener:
    """Masks frames as they come; listens anew whenever a second begins.

    sound: the whole waveform float32 (n,) 16 kHz mono; an iterable of one-second waveforms (n,), read
    as its second begins; or a function second -> waveform (n,), called once in each second that has a
    frame, for live sound. After the end of the sound, silence. One listener serves one thread;
    listeners in several threads may share a pipeline.
    """

    def __init__(self, pipeline: SavePipeline, sound: SoundSource) -> None:
        self.pipeline = pipeline
        self.second = -1  # the one heard now
        self.waveform: Waveform = np.zeros(0, np.float32)  # its sound, (n,)
        self._at = sound if callable(sound) else _in_order(sound)
        self._embedding: NDArray[np.float32] | None = None

    def __call__(self, frame: Frame, time_s: float) -> Mask:
        """frame uint8 (H,W,3) RGB, shown at time_s >= 0 on the clock of the sound -> bool (H,W).

        Raises DataError for a time that is no number or in an earlier second than the last frame's.
        """
        if not math.isfinite(time_s) or int(time_s + ROUNDING_S) < self.second or time_s < 0:
            raise DataError(
                "wrong time of a frame",
                got=f"{time_s} s",
                expected=f"{max(self.second, 0)} s or later: seconds are heard in order",
            )
        wanted = int(time_s + ROUNDING_S)
        if wanted > self.second or self._embedding is None:
            self.waveform, self.second = self._at(wanted), wanted
            self._embedding = self.pipeline.embed(self.waveform)
        return self.pipeline.mask(frame, self._embedding)


def stream(
    pipeline: SavePipeline,
    frames: Iterable[Any],
    sound: SoundSource,
    *,
    frames_per_s: float | None = None,
) -> Iterator[Mask]:
    """Yield a mask bool (H,W) for every frame.

    frames: uint8 (H,W,3) at frames_per_s, or without a rate pairs (frame, time in s), as a camera
    gives them. sound as in Listener: frame i hears second floor(i / frames_per_s), a pair the second
    of its time. Memory does not grow with the length of the video.
    """
    if frames_per_s is not None and not frames_per_s > 0:
        raise DataError("wrong frame rate", got=str(frames_per_s), expected="frames per second > 0")
    listener = Listener(pipeline, sound)
    for i, item in enumerate(frames):
        frame, time_s = item if frames_per_s is None else (item, i / frames_per_s)
        yield listener(frame, time_s)


def _in_order(sound: Waveform | Iterable[Waveform]) -> Callable[[int], Waveform]:
    """second -> its waveform, for ascending seconds; those between are skipped unheard."""
    seconds = _seconds(sound) if isinstance(sound, np.ndarray) else iter(sound)
    done, silence = -1, np.zeros(0, np.float32)

    def at(second: int) -> Waveform:
        nonlocal done
        window: Waveform | None = silence
        while done < second and window is not None:
            window, done = next(seconds, None), done + 1
        done = second
        return silence if window is None else window

    return at


def _seconds(waveform: Waveform) -> Iterator[Waveform]:
    for start in range(0, len(waveform), WINDOW_SAMPLES):
        yield waveform[start : start + WINDOW_SAMPLES]
