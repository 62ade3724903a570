"""Decoding of the audio of a video file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from save_deploy.data.audio import Waveform, check_rate
from save_deploy.data.downmix import to_mono
from save_deploy.data.film import Damage, check_time, decoded, seek, start_of
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer

PREROLL_S = 0.2  # an audio decoder is exact only after a few packets
MAX_CHANNELS = 64  # limit of FFmpeg's resampler
Piece = tuple[int, Waveform]  # index of the first sample from start_s on, samples (n,)
GAP_S = 0.05  # frames that are earlier or later than expected by more start a new run


def sound_pieces(
    container: InputContainer,
    stream: Any,
    damage: Damage,
    *,
    start_s: float = 0.0,
    seconds: float = math.inf,
) -> Iterator[Waveform]:
    """Yield the sound from start_s on in consecutive pieces float32 (n,), at most `seconds` of it.

    16 kHz mono in [-1,1], channels mixed as FFmpeg does.
    Every sample is at its time in the file: there is silence before a late start and in gaps, at
    most one second per piece, and of overlapping samples the first are used. Packets that cannot be
    decoded or contain NaN are counted in `damage`.
    """
    at, end = 0, seconds * SAMPLE_RATE_HZ  # index of the next sample, and of the end
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
    """Yield the stored pieces with their positions, without those that contain NaN."""
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
            run = None  # the resampler would spread NaN to later samples
    yield from [] if run is None else _finite(run.rest(), damage)


def _finite(pieces: list[Piece], damage: Damage) -> list[Piece]:
    """Return the pieces, or none after counting a bad packet when they contain NaN."""
    if _are_finite(pieces):
        return pieces
    damage.skipped(DataError("sound contains NaN or infinite samples", expected="finite samples"))
    return []


def _are_finite(pieces: list[Piece]) -> bool:
    return all(np.isfinite(samples).all() for _, samples in pieces)


class _Run:
    """Consecutive frames of one format without a gap, resampled together."""

    def __init__(self, kind: tuple[str, str, int], begins_s: float) -> None:
        import av

        check_rate(kind[2])
        self.kind, self._at = kind, round(begins_s * SAMPLE_RATE_HZ)
        # Convert only the rate: FFmpeg's mix to mono in floats is not divided by the sum of its
        # weights. Use an interleaved format: with eight or more planes av reads one plane too many.
        self._resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE_HZ)

    def feed(self, frame: Any) -> list[Piece]:
        return self._given(self._resampler.resample(frame))

    def rest(self) -> list[Piece]:
        return self._given(self._resampler.resample(None))

    def _given(self, frames: list[Any]) -> list[Piece]:
        pieces = []
        for frame in frames:
            samples = mono_of(frame)
            pieces.append((self._at, samples))
            self._at += len(samples)
        return pieces


def mono_of(frame: Any) -> Waveform:
    """Return the mixed channels of a frame of format flt, float32 (n,)."""
    layout = frame.layout
    samples = frame.to_ndarray().reshape(-1, layout.nb_channels)
    unnamed = layout.name == f"{layout.nb_channels} channels"
    return to_mono(samples, () if unnamed else [channel.name for channel in layout.channels])
