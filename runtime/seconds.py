"""Sound of a Listener as a function second -> waveform, from any accepted source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import partial
from os import PathLike
from typing import Any, cast

import numpy as np

from save_deploy.bundle import WINDOW_SAMPLES
from save_deploy.data.audio import Waveform
from save_deploy.errors import DataError
from save_deploy.runtime.inputs import as_sound

# A whole waveform (n,), an iterable of its seconds, a function second -> waveform, or a file's path.
# 16 kHz mono in [-1,1], unless a rate is passed as well.
SoundSource = Waveform | Iterable[Waveform] | Callable[[int], Waveform] | str | PathLike[str]
SILENCE: Waveform = np.zeros(0, np.float32)


def seconds_of(sound: Any, rate: int | None) -> Callable[[int], Waveform]:
    """Return a function second -> waveform (n,), for ascending seconds. Raises DataError."""
    if callable(sound):
        return _resampled(cast(Callable[[int], Waveform], sound), rate)
    if hasattr(sound, "__array__") or isinstance(sound, (str, PathLike)) or _is_flat(sound):
        return partial(_second_of, as_sound(sound, rate))
    if not isinstance(sound, Iterable) or isinstance(sound, (Mapping, Set, bytes, bytearray)):
        raise DataError(
            "wrong sound",
            got=type(sound).__name__,
            expected="a waveform (n,), an iterable of seconds, or a function second -> waveform",
        )
    return _resampled(_in_order(iter(sound)), rate)


def _resampled(at: Callable[[int], Waveform], rate: int | None) -> Callable[[int], Waveform]:
    """Resample each second to 16 kHz. A second without samples remains empty."""
    if rate is None:
        return at

    def resampled(second: int) -> Waveform:
        given = at(second)
        return as_sound(given, rate) if np.size(given) else SILENCE

    return resampled


def _is_flat(sound: Any) -> bool:
    """Return True for a list of samples, False for a list of waveforms."""
    return isinstance(sound, (list, tuple)) and all(np.ndim(x) == 0 for x in sound[:1])


def _second_of(waveform: Waveform, second: int) -> Waveform:
    return waveform[WINDOW_SAMPLES * second : WINDOW_SAMPLES * (second + 1)]


def _in_order(seconds: Iterator[Waveform]) -> Callable[[int], Waveform]:
    """Read an iterable of seconds. Seconds that are not requested are read and dropped."""
    done, ended = -1, False

    def at(second: int) -> Waveform:
        nonlocal done, ended
        window = SILENCE
        while done < second and not ended:
            try:
                window, done = next(seconds), done + 1
            except StopIteration:
                window, ended = SILENCE, True
        done = second
        return window

    return at
