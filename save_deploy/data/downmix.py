"""Several channels of sound -> one, as FFmpeg mixes them: the one definition for films, files and C++.

FFmpeg's default matrix to mono (libswresample/rematrix.c), its weights divided by their sum, as FFmpeg
does when it writes integers: `ffmpeg -i film -ac 1 sound.wav`. Two channels are averaged.
runtime/cpp/src/downmix.cpp has the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SIDE = math.sqrt(0.5)  # -3 dB
_BACK = 0.5
_WEIGHTS = {
    "FC": 1.0,
    "FL": _SIDE, "FR": _SIDE, "FLC": _SIDE, "FRC": _SIDE,
    "BL": _BACK, "BR": _BACK, "BC": _BACK, "SL": _BACK, "SR": _BACK,
    "TFL": _SIDE, "TFR": _SIDE,
    **dict.fromkeys("LFE TC TFC TBL TBC TBR WL WR".split(), 0.0),
}  # fmt: skip
_FRONT = {"FL", "FR", "FC"}
_PAIRS = (("FL", "FR"), ("BL", "BR"), ("SL", "SR"), ("FLC", "FRC"), ("TFL", "TFR"))
# Where only the number is known, FFmpeg's guess. Three channels (2.1 there) are averaged: conformance
# packs of all versions hold such a sound.
_BY_COUNT = {
    2: ("FL", "FR"),
    4: ("FL", "FR", "FC", "BC"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}

# Where the kind of file says it: FLAC, and Vorbis and Opus in Ogg, whose center is in the middle.
_QUAD = ("FL", "FR", "BL", "BR")
_BY_KIND = {
    "FLAC": {3: ("FL", "FR", "FC"), 4: _QUAD},
    "OGG": {
        3: ("FL", "FC", "FR"),
        4: _QUAD,
        5: ("FL", "FC", "FR", "BL", "BR"),
        6: ("FL", "FC", "FR", "BL", "BR", "LFE"),
        7: ("FL", "FC", "FR", "SL", "SR", "BC", "LFE"),
        8: ("FL", "FC", "FR", "SL", "SR", "BL", "BR", "LFE"),
    },
}
# libsndfile's numbers of places, SF_CHANNEL_MAP_MONO and on; "" is one without a name here
_OF_SNDFILE = (
    "", "FC", "FL", "FR", "FC", "FL", "FR", "FC", "BC", "BL", "BR", "LFE", "FLC", "FRC", "SL", "SR",
    "TC", "TFL", "TFR", "TFC", "TBL", "TBR", "TBC",
)  # fmt: skip


def names_of_file(kind: str, n_channels: int, numbers: Sequence[int]) -> tuple[str, ...]:
    """Of a file that libsndfile reads. kind: WAV, FLAC, OGG ...; numbers: its channel map, empty where
    the file has none. () where nothing is known but the number of channels."""
    if numbers:
        return tuple(_OF_SNDFILE[k] if 0 <= k < len(_OF_SNDFILE) else "" for k in numbers)
    return _BY_KIND.get(kind, {}).get(n_channels, ())


def mono_weights(n_channels: int, names: Sequence[str] = ()) -> NDArray[np.float32]:
    """Weights float32 (n_channels,) that sum to 1. names: of the channels as FFmpeg writes them (FL,
    FC, LFE ...), empty where only their number is known.

    A layout that FFmpeg has no matrix for (microphone arrays, ambisonics) is averaged.
    """
    known = tuple(names) or _BY_COUNT.get(n_channels, ())
    if len(known) != n_channels or not _is_mixed(known):
        return np.full(n_channels, 1 / n_channels, np.float32)
    weights = np.array([_WEIGHTS[name] for name in known])
    return (weights / weights.sum()).astype(np.float32)


def to_mono(samples: NDArray[np.float32], names: Sequence[str] = ()) -> NDArray[np.float32]:
    """samples (n,channels) -> float32 (n,)."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    weights = mono_weights(samples.shape[1], names)
    if weights.min() == weights.max():  # to the bit what has been heard of stereo so far
        return samples.mean(axis=1, dtype=np.float32)
    mixed = np.zeros(len(samples), np.float32)
    for channel in np.flatnonzero(weights):  # one that is not heard may hold anything
        mixed += samples[:, channel] * weights[channel]
    return mixed


def _is_mixed(names: Sequence[str]) -> bool:
    """Whether FFmpeg mixes this layout: known places, a front, and left never without right."""
    there = set(names)
    return (
        len(there) == len(names)
        and there <= set(_WEIGHTS)
        and bool(there & _FRONT)
        and all((left in there) == (right in there) for left, right in _PAIRS)
    )
