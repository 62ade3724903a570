"""Read a video file: frames with their times, and the seconds of its sound.

Frames and sound are read through separate handles of the file, so neither is buffered for the other,
however they are interleaved.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from save_deploy.bundle import WINDOW_SAMPLES
from save_deploy.data.audio import Waveform
from save_deploy.data.film import (
    Damage,
    check_time,
    opened,
    picture_track,
    pictures,
    seek,
    sound_track,
    start_of,
)
from save_deploy.data.film_sound import sound_pieces
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.transforms import Frame
from save_deploy.data.video import AS_STORED, ROUNDING_S, Orientation, orientation_of, pixels
from save_deploy.errors import DataError
from save_deploy.runtime.video.options import Section

if TYPE_CHECKING:
    from av.container import InputContainer


@dataclass(frozen=True)
class TimedFrame:
    """A frame with its time.

    shown: uint8 (H,W,3) RGB, upright, or a frame as decoded, in its own pixel format.
    turn: how a decoded frame becomes upright.
    pts, duration: in units of the source's time_base, from the start of the section; duration 0 if
    unknown.
    time_s: seconds from the start of the section.
    """

    shown: Any
    pts: int
    duration: int
    time_s: float
    turn: Orientation = AS_STORED

    @property
    def picture(self) -> Frame:
        """uint8 (H,W,3) RGB, upright. A decoded frame is converted each time."""
        if isinstance(self.shown, np.ndarray):
            return self.shown
        return pixels(self.shown, self.turn)

    @property
    def size(self) -> tuple[int, int]:
        """Upright (H,W)."""
        if isinstance(self.shown, np.ndarray):
            return self.shown.shape[0], self.shown.shape[1]
        size = (self.shown.height, self.shown.width)
        return size[::-1] if self.turn.transposed else size


class VideoSource:
    """A video file and its properties. Raises DataError for a file that cannot be played."""

    def __init__(self, path: Path, section: Section = Section()) -> None:
        self.path, self.section = path, section
        self.sound_s = 0.0  # seconds of sound read so far
        self.out_of_order = 0  # frames skipped because their time is not after the previous one
        self.damage = {what: Damage(what) for what in ("video", "sound")}
        with opened(path) as container:
            stream = picture_track(container, path)
            self.time_base = Fraction(stream.time_base or 1)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.aspect = stream.sample_aspect_ratio  # of a pixel
            self.width, self.height = stream.codec_context.width, stream.codec_context.height
            self.colorspace = int(stream.codec_context.colorspace)
            self.length_s = _length_s(container, stream)
            sound = sound_track(container)
            self.has_sound = sound is not None
            self.sound_codec = "" if sound is None else sound.codec_context.codec.canonical_name
        if self.length_s is not None and section.start_s >= self.length_s:
            raise DataError(
                "the section starts after the end",
                got=f"{section.start_s:g} s",
                expected=f"less than {self.length_s:.1f} s",
            )

    @property
    def n_frames(self) -> int | None:
        """Expected number of frames, an estimate; None for an unknown length and for key frames."""
        if self.length_s is None or self.section.keyframes:
            return None
        length = min(self.length_s - self.section.start_s, self.section.end_s)
        rate = min(float(self.rate), self.section.most_fps or math.inf)
        return max(1, round(length * rate))

    def frames(self) -> Generator[TimedFrame, None, None]:
        """Yield the frames of the section in order, as decoded.

        Packets that cannot be decoded are skipped and counted. Raises DataError if too many of them
        are corrupt or no frame can be decoded.
        """
        section, last_pts, last_kept = self.section, -1, -1
        self.out_of_order = 0
        turn: Orientation | None = None
        with opened(self.path) as container:
            stream = picture_track(container, self.path)
            stream.thread_type = "AUTO"
            if section.keyframes:
                stream.codec_context.skip_frame = "NONKEY"
            begin = round((start_of(container) + Fraction(section.start_s)) / self.time_base)
            seek(container, section.start_s)
            for at, frame in pictures(container, stream, self.damage["video"]):
                turn = orientation_of(frame) if turn is None else turn
                pts = at - begin
                time_s = float(pts * self.time_base)
                if time_s < -ROUNDING_S:
                    continue
                if pts <= last_pts:
                    self.out_of_order += 1
                    continue
                if time_s >= section.end_s - ROUNDING_S:
                    break
                check_time(time_s)
                last_pts = pts
                if section.most_fps is not None:
                    kept = int((time_s + ROUNDING_S) * section.most_fps)
                    if kept == last_kept:
                        continue
                    last_kept = kept
                duration = 0 if section.fps else frame.duration or 0
                yield TimedFrame(frame, pts, duration, max(0.0, time_s), turn)
        if last_pts < 0:
            raise DataError("no frame can be decoded", got=str(self.path), expected="a video")
        self.damage["video"].judge()

    def sound_seconds(self) -> Iterator[Waveform]:
        """Yield the sound of the section second by second.

        Each second is float32 (16000,), 16 kHz mono in [-1,1]; the last one may be shorter. Corrupt
        parts are silent.
        """
        held, self.sound_s, section = np.zeros(0, np.float32), 0.0, self.section
        with opened(self.path) as container:
            track, damage = sound_track(container), self.damage["sound"]
            pieces = sound_pieces(
                container, track, damage, start_s=section.start_s, seconds=section.end_s
            )
            for piece in pieces:
                held = np.concatenate([held, piece])
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
