"""Frames of a video in order, with the audio side run once per second of sound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Frame, Mask
from save_deploy.errors import DataError
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.specs import WINDOW_SAMPLES


def stream(
    pipeline: SavePipeline,
    frames: Iterable[Frame],
    sound: Waveform | Iterable[Waveform],
    *,
    frames_per_s: float,
) -> Iterator[Mask]:
    """Yield a mask bool (H,W) for every frame uint8 (H,W,3).

    sound: the whole waveform float32 (n,) 16 kHz mono, or an iterable of one-second waveforms (n,),
    read as its second begins, so a live source works. Frame i hears second floor(i / frames_per_s);
    after the end of the sound, silence. Memory does not grow with the length of the video.
    """
    if frames_per_s <= 0:
        raise DataError("wrong frame rate", got=str(frames_per_s), expected="frames per second > 0")
    seconds = _seconds(sound) if isinstance(sound, np.ndarray) else iter(sound)
    silence = np.zeros(0, np.float32)
    current, embedding = -1, None
    for i, frame in enumerate(frames):
        wanted = int(i / frames_per_s)
        while current < wanted:  # below one frame per second, seconds are skipped unheard
            window, current = next(seconds, silence), current + 1
            embedding = None
        if embedding is None:
            embedding = pipeline.embed(window)
        yield pipeline.mask(frame, embedding)


def _seconds(waveform: Waveform) -> Iterator[Waveform]:
    for start in range(0, len(waveform), WINDOW_SAMPLES):
        yield waveform[start : start + WINDOW_SAMPLES]
