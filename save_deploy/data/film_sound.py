"""The sound of a film: the one reader, whoever hears it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform, check_rate
from save_deploy.data.film import Damage, check_time, decoded, seek, start_of
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer

PREROLL_S = 0.2  # a sound decoder is exact only after a few packets
MAX_CHANNELS = 64  # of FFmpeg's resampler
Piece = tuple[int, Waveform]  # first sample counted from the start asked for, samples (n,)
GAP_S = 0.05  # sound that comes this much later or earlier than it should is placed anew


def sound_pieces(
    container: InputContainer,
    stream: Any,
    damage: Damage,
    *,
    start_s: float = 0.0,
    seconds: float = math.inf,
) -> Iterator[Waveform]:
    """Pieces float32 (n,), one after the other the sound from start_s on: 16 kHz mono in [-1,1],
    channels averaged, at most `seconds` of it.

    Every sample is where its time says: silence before a late start and in gaps, at most a second of
    it in one piece; of what overlaps the first is heard. Packets that cannot be decoded or hold NaN
    are counted in `damage`.
    """
    at, end = 0, seconds * SAMPLE_RATE_HZ  # the next sample to give, and where to stop
    end = end if math.isinf(end) else round(end)
    for begins_at, piece in _placed(container, stream, damage, start_s):
        if begins_at < end:
            check_time(begins_at / SAMPLE_RATE_HZ)
        while at < min(begins_at, end):
            silence = np.zeros(int(min(begins_at - at, end - at, SAMPLE_RATE_HZ)), np.float32)
            at += silence.size
            yield silence
        if at >= end:
            return
        wanted = piece[at - begins_at :]
        wanted = wanted[: int(min(wanted.size, end - at))]
        at += wanted.size
        if wanted.size:
            yield np.clip(wanted, -1.0, 1.0)


def _placed(
    container: InputContainer, stream: Any, damage: Damage, start_s: float
) -> Iterator[Piece]:
    """Pieces as they are stored, those with NaN left out."""
    seek(container, start_s - PREROLL_S)
    zero_s = float(start_of(container)) + start_s
    run: _Run | None = None
    due_s = 0.0
    for frame in decoded(container, stream, damage):
        kind = (frame.format.name, frame.layout.name, frame.rate)
        if frame.layout.nb_channels > MAX_CHANNELS:
            raise DataError(
                "wrong number of channels",
                got=str(frame.layout.nb_channels),
                expected=f"1 to {MAX_CHANNELS}",
            )
        time_s = due_s if frame.time is None else frame.time - zero_s
        if run is None or run.kind != kind or abs(time_s - due_s) > GAP_S:
            yield from [] if run is None else _finite(run.rest(), damage)
            run, due_s = _Run(kind, time_s), time_s
        pieces = run.feed(frame)
        due_s += frame.samples / frame.rate
        yield from _finite(pieces, damage)
        if not _are_finite(pieces):
            run = None  # NaN stays in a resampler for a while
    yield from [] if run is None else _finite(run.rest(), damage)


def _finite(pieces: list[Piece], damage: Damage) -> list[Piece]:
    """The same, or none and a packet counted as bad."""
    if _are_finite(pieces):
        return pieces
    damage.skipped(DataError("sound contains NaN or infinite samples", expected="finite samples"))
    return []


def _are_finite(pieces: list[Piece]) -> bool:
    return all(np.isfinite(samples).all() for _, samples in pieces)


class _Run:
    """Frames of one kind that follow each other without a gap, resampled as one sound."""

    def __init__(self, kind: tuple[str, str, int], begins_s: float) -> None:
        import av

        check_rate(kind[2])
        self.kind, self._at = kind, round(begins_s * SAMPLE_RATE_HZ)
        # Only the rate is converted: a mix to mono would be weighted by 0.707, not averaged. Into one
        # plane: of eight planes or more, which many decoders give, av reads one that is not there.
        self._resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE_HZ)

    def feed(self, frame: Any) -> list[Piece]:
        return self._given(self._resampler.resample(frame))

    def rest(self) -> list[Piece]:
        return self._given(self._resampler.resample(None))

    def _given(self, frames: list[Any]) -> list[Piece]:
        pieces = []
        for frame in frames:
            samples = channels_of(frame)
            pieces.append((self._at, samples.mean(axis=1, dtype=np.float32)))
            self._at += len(samples)
        return pieces


def channels_of(frame: Any) -> NDArray[np.float32]:
    """A frame of format flt -> (n,channels)."""
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels)  # type: ignore[no-any-return]
