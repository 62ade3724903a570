"""A video file as it is played: frames with their times, and the seconds of its sound.

Pictures and sound are read side by side through the same file, each at its own place in it, so that
neither is held for the other, however they are interleaved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from save_deploy.bundle import WINDOW_SAMPLES
from save_deploy.data.audio import Waveform
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.transforms import Frame
from save_deploy.data.video import (
    PREROLL_S,
    ROUNDING_S,
    Orientation,
    averaged,
    opened,
    orientation_of,
    pixels,
    seek,
    start_of,
)
from save_deploy.errors import DataError
from save_deploy.runtime.video.options import Section

if TYPE_CHECKING:
    from av.container import InputContainer

GAP_S = 0.05  # sound that comes later than this was lost: silence takes its place
MAX_BAD = 0.1  # share of packets that may be skipped
_JUDGED = 200  # packets after which that is judged while reading


@dataclass
class Damage:
    """Packets of one track read, those that could not be decoded, and whether the file broke off."""

    what: str
    read: int = 0
    bad: int = 0
    broken_off: bool = False

    def skipped(self, error: Exception) -> None:
        self.bad += 1
        if self.bad > MAX_BAD * max(self.read, _JUDGED):
            self._raise(str(error))

    def judge(self) -> None:
        """Raise DataError when too much was skipped."""
        if self.bad > MAX_BAD * self.read:
            self._raise("")

    def _raise(self, detail: str) -> None:
        raise DataError(
            f"too much of the {self.what} is corrupt",
            got=f"{self.bad} of {self.read} packets cannot be decoded {detail}".rstrip(),
            expected=f"at most {MAX_BAD:.0%}",
        )


@dataclass(frozen=True)
class TimedFrame:
    """picture uint8 (H,W,3) RGB, upright. pts and duration count in the source's time_base from the
    start of the section; duration 0: not known."""

    picture: Frame
    pts: int
    duration: int
    time_s: float


class VideoSource:
    """What is known of a file before decoding. Raises DataError for a file that cannot be played."""

    def __init__(self, path: Path, section: Section = Section()) -> None:
        self.path, self.section = path, section
        self.sound_s = 0.0  # of the sound given so far
        self.damage = {what: Damage(what) for what in ("video", "sound")}
        with opened(path) as container:
            if not container.streams.video:
                raise DataError("no video in the file", got=str(path), expected="a video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(
                    "no decoder for the video of this file",
                    got=str(path),
                    expected="a codec that this build of PyAV has: H.264, HEVC, VP9, AV1, ...",
                )
            self.time_base = Fraction(stream.time_base or 1)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.aspect = stream.sample_aspect_ratio  # of a pixel
            self.width, self.height = stream.codec_context.width, stream.codec_context.height
            self.colorspace = int(stream.codec_context.colorspace)
            self.length_s = _length_s(container, stream)
            audio = container.streams.audio
            self.has_sound = bool(audio) and audio[0].codec_context is not None
            self.sound_codec = audio[0].codec_context.codec.canonical_name if self.has_sound else ""
        if self.length_s is not None and section.start_s >= self.length_s:
            raise DataError(
                "the section starts after the end",
                got=f"{section.start_s:g} s",
                expected=f"less than {self.length_s:.1f} s",
            )

    @property
    def n_frames(self) -> int | None:
        """How many frames to expect, a guess; None for a file that does not say its length."""
        if self.length_s is None:
            return None
        length = min(self.length_s - self.section.start_s, self.section.end_s)
        rate = min(float(self.rate), self.section.fps or math.inf)
        return max(1, round(length * rate))

    def frames(self) -> Generator[TimedFrame, None, None]:
        """Frames of the section in order, their times as in the file. Packets that cannot be decoded
        are skipped and counted; raises DataError when they are too many or no frame is left."""
        section, last_pts, last_kept = self.section, -1, -1
        turn: Orientation | None = None
        with opened(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            begin = round(_begin(container, section) / self.time_base)
            seek(container, section.start_s)
            for frame in decoded(container, stream, self.damage["video"]):
                turn = orientation_of(frame) if turn is None else turn
                pts = last_pts + 1 if frame.pts is None else frame.pts - begin
                time_s = float(pts * self.time_base)
                if pts <= last_pts or time_s < -ROUNDING_S:
                    continue
                if time_s >= section.end_s - ROUNDING_S:
                    break
                last_pts = pts
                if section.fps is not None:
                    kept = int((time_s + ROUNDING_S) * section.fps)
                    if kept == last_kept:
                        continue
                    last_kept = kept
                duration = 0 if section.fps else frame.duration or 0
                yield TimedFrame(pixels(frame, turn), pts, duration, max(0.0, time_s))
        if last_pts < 0:
            raise DataError("no frame can be decoded", got=str(self.path), expected="a video")
        self.damage["video"].judge()

    def sound_seconds(self) -> Iterator[Waveform]:
        """The sound of the section second by second, (16000,), the last shorter: 16 kHz mono in [-1,1].

        Resampled by av and averaged over channels, as data/video.py does for datasets: without gaps
        the samples are those of read_video_sound. Lost stretches are silent.
        """
        held, self.sound_s = np.zeros(0, np.float32), 0.0
        with opened(self.path) as container:
            pieces = _placed(container, self.section.start_s, self.damage["sound"])
            for piece in pieces:
                held = np.concatenate([held, np.clip(piece, -1.0, 1.0)])
                self.sound_s += piece.size / SAMPLE_RATE_HZ
                while held.size >= WINDOW_SAMPLES:
                    yield held[:WINDOW_SAMPLES]
                    held = held[WINDOW_SAMPLES:]
        self.damage["sound"].judge()
        if held.size:
            yield held


def _length_s(container: InputContainer, stream: Any) -> float | None:
    import av

    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _begin(container: InputContainer, section: Section) -> Fraction:
    """Where the section's clock is 0 on the file's."""
    import av

    return Fraction(container.start_time or 0, av.time_base) + Fraction(section.start_s)


def packets_of(container: InputContainer, stream: Any, damage: Damage) -> Iterator[Any]:
    """Packets of a stream, until the file ends or breaks off."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            damage.broken_off = True
            return
        if packet is None:
            return
        if packet.size:  # an empty one only asks a decoder for its rest
            damage.read += 1
            yield packet


def decoded(container: InputContainer, stream: Any, damage: Damage) -> Iterator[Any]:
    """All frames of a stream; what cannot be decoded is counted and passed over."""
    import av

    for packet in itertools.chain(packets_of(container, stream, damage), [None]):
        try:
            frames = stream.decode(packet)  # None: what the decoder still holds
        except av.FFmpegError as error:
            damage.skipped(error)
            frames = []
        yield from frames


def _placed(container: InputContainer, start_s: float, damage: Damage) -> Iterator[Waveform]:
    """Pieces (n,) at 16 kHz from start_s on, each at its time: silence before a late start and in
    gaps, at most a second of it at once."""
    pieces = _resampled(container, start_s, damage)
    at: int | None = None  # the next sample to give, negative before start_s
    for begins_at, piece in pieces:
        at = min(begins_at, 0) if at is None else at
        for lacking in range(begins_at - at, 0, -WINDOW_SAMPLES):
            yield np.zeros(min(lacking, WINDOW_SAMPLES), np.float32)
        at = max(at, begins_at)
        wanted = piece[max(0, -at) :]
        at += piece.size
        if wanted.size:
            yield wanted


def _resampled(
    container: InputContainer, start_s: float, damage: Damage
) -> Iterator[tuple[int, Waveform]]:
    """(first sample counted from start_s, piece). A piece that follows another without a gap begins
    at most where that one ends."""
    import av

    seek(container, start_s - PREROLL_S)
    zero_s, ends_s, kind, begins_at = start_of(container) + start_s, 0.0, None, 0
    resampler: Any = None
    for frame in decoded(container, container.streams.audio[0], damage):
        if not np.isfinite(frame.to_ndarray()).all():
            damage.skipped(ValueError("samples that are not finite"))
            continue
        time_s = ends_s if frame.time is None else frame.time - zero_s
        found = (frame.format.name, frame.layout.name, frame.rate)
        if kind != found or time_s > ends_s + GAP_S:
            if resampler is not None:
                yield from ((begins_at, p) for p in averaged(resampler.resample(None)))
            # only the rate is converted: a mix to mono would be weighted by 0.707, not averaged
            resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE_HZ)
            kind, begins_at = found, round(time_s * SAMPLE_RATE_HZ)
        ends_s = time_s + frame.samples / frame.rate
        yield from ((begins_at, p) for p in averaged(resampler.resample(frame)))
    if resampler is not None:
        yield from ((begins_at, p) for p in averaged(resampler.resample(None)))
