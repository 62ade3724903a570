"""The one reader of sound: sound files and films alike, whoever hears them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from save_deploy.data.audio import MIN_SECONDS, UNREADABLE, Waveform, read_waveform
from save_deploy.data.video import read_video_sound
from save_deploy.errors import DataError


def read_sound(
    path: str | os.PathLike[str],
    *,
    min_seconds: float = MIN_SECONDS,
    seconds: float = math.inf,
    hint: str = "",
) -> Waveform:
    """A sound file (wav, flac, ogg ...) or the sound of a film (mp4, mkv, m4a ...) -> float32 (n,),
    16 kHz mono in [-1,1].

    Channels are mixed as FFmpeg does (data/downmix.py), other rates resampled. seconds: read at
    least so much of a sound file from its start, and not all of a longer one. Raises DataError for a
    file that is missing, unreadable, has no sound, or less of it than min_seconds (then `hint` is the
    cure it names).

    >>> read_sound(sound_path).dtype.name
    'float32'
    """
    place = Path(path)
    try:
        return read_waveform(place, min_seconds=min_seconds, seconds=seconds, hint=hint)
    except DataError as error:
        if error.what != UNREADABLE:
            raise
        try:
            return read_video_sound(place, min_seconds=min_seconds, hint=hint)
        except DataError as of_film:
            raise error if of_film.what == "video cannot be read" else of_film from None
