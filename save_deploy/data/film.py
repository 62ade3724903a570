"""Access to a video file through FFmpeg: choice of streams, start time, and damaged packets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from save_deploy.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer

MAX_BAD = 0.1  # allowed share of skipped packets
MAX_TIME_S = 86_400  # a later time in a file means that its clock was set during recording
# FFmpegErrors with these base classes are not the fault of the file. BlockingIOError: no memory for
# the stack of a thread
NO_ROOM = (MemoryError, BlockingIOError)
_JUDGED = 200  # packets before damage is checked while reading
_NO_TIMES = 0x80  # AVFMT_NOTIMESTAMPS: a raw stream, which is not seekable either
# Kinds of files that hold their own pictures and sound and are known by their content. A playlist names
# other files, which FFmpeg would open; raw samples are known by their name alone.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,gif,ivf"
_STREAMS = "h264,hevc,m4v,mpegvideo,mjpeg,obu,wav,w64,aiff,caf,flac,mp3,aac,ac3,eac3,amr"
FORMATS = f"{_CONTAINERS},{_STREAMS}"


def url_of(path: Path) -> str:
    """Return a URL that FFmpeg opens as this file. `12:30.mp4` alone would be a protocol."""
    return f"file:{path}"


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a file for the block. Raises DataError when it is missing or cannot be read."""
    import av

    if not os.path.isfile(path):
        raise DataError("video not found", got=str(path), expected="an mp4, mkv or webm file")
    try:
        with av.open(url_of(path), options={"format_whitelist": FORMATS}) as container:
            yield container
    except NO_ROOM as error:
        raise DataError("not enough memory for this video", got=str(path)) from error
    except (av.FFmpegError, ValueError, IndexError) as error:
        why = getattr(error, "strerror", None) or error  # without FFmpeg's number
        raise DataError(
            "video cannot be read", got=f"{path}: {why}", expected="an mp4, mkv or webm file"
        ) from error


def picture_track(container: InputContainer, path: Path) -> Any:
    """Return the video stream of the film; cover images are skipped.

    Raises DataError when there is none, or none that can be decoded.
    """
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & still]
    if not streams:
        raise DataError("no video in the file", got=str(path), expected="a video stream")
    track = _first_choice(streams)
    if track is None:
        raise DataError(
            "no decoder for the video of this file",
            got=str(path),
            expected="a codec that this build of PyAV has: H.264, HEVC, VP9, AV1, ...",
        )
    return track


def sound_track(container: InputContainer) -> Any | None:
    """Return the default audio stream, else the first, of those that can be decoded, or None."""
    return _first_choice(container.streams.audio)


def required_sound(container: InputContainer, path: Path) -> Any:
    """Return sound_track. Raises DataError when there is none."""
    track = sound_track(container)
    if track is None and container.streams.audio:
        raise DataError(
            "no decoder for the sound of this video",
            got=str(path),
            expected="a codec that this build of PyAV has: AAC, MP3, Opus, PCM, ...",
        )
    if track is None:
        raise DataError("no sound in the video", got=str(path), expected="an audio stream")
    return track


def _first_choice(streams: Any) -> Any | None:
    """Return the first stream that can be decoded, preferring one marked as default, or None."""
    from av.stream import Disposition

    decodable = [stream for stream in streams if stream.codec_context is not None]
    marked = [stream for stream in decodable if stream.disposition & Disposition.default]
    return next(iter(marked + decodable), None)


def start_of(container: InputContainer) -> Fraction:
    """Return the start time of a file in s: its first picture or sound, rarely 0 in recordings."""
    import av

    return Fraction(container.start_time or 0, av.time_base)


def seek(container: InputContainer, time_s: float) -> None:
    """Seek to the last key frame at or before time_s from the start of the video.

    Raw streams are not seekable and stay at their start.
    """
    import av

    if time_s > 0 and not container.format.flags & _NO_TIMES:
        container.seek(round((time_s + start_of(container)) * av.time_base))


@dataclass
class Damage:
    """Damage of one track while reading it.

    strict: raise the first error.
    read, bad: number of packets read, and of those that cannot be decoded.
    broken_off: True when the file ends early.
    """

    what: str
    strict: bool = False
    read: int = 0
    bad: int = 0
    broken_off: bool = False

    def skipped(self, error: Exception) -> None:
        """Count a packet that cannot be decoded.

        Raises the error when strict, DataError for too many.
        """
        self.bad += 1
        if self.strict:
            raise error
        if self.bad > MAX_BAD * max(self.read, _JUDGED):
            self._raise(str(error))

    def judge(self) -> None:
        """Raise DataError when too many packets were skipped."""
        if self.bad > MAX_BAD * self.read:
            self._raise("")

    def _raise(self, detail: str) -> None:
        raise DataError(
            f"too much of the {self.what} is corrupt",
            got=f"{self.bad} of {self.read} packets cannot be decoded {detail}".rstrip(),
            expected=f"at most {MAX_BAD:.0%}",
        )


def packets_of(container: InputContainer, stream: Any, damage: Damage) -> Iterator[Any]:
    """Yield packets of a stream until the file ends or breaks off."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            if damage.strict or isinstance(error, NO_ROOM):
                raise
            damage.broken_off = True
            return
        if packet is None:
            return
        if packet.size:  # an empty packet only flushes the decoder
            damage.read += 1
            yield packet


def decoded(container: InputContainer, stream: Any, damage: Damage) -> Iterator[Any]:
    """Yield all frames of a stream; packets that cannot be decoded are counted and skipped."""
    import av

    for packet in itertools.chain(packets_of(container, stream, damage), [None]):
        try:
            frames = stream.decode(packet)  # None flushes the decoder
        except NO_ROOM:
            raise
        except av.FFmpegError as error:
            damage.skipped(error)
            frames = []
        yield from frames


def pictures(container: InputContainer, stream: Any, damage: Damage) -> Iterator[tuple[int, Any]]:
    """Yield (time, decoded frame), with the time in units of the stream's time_base.

    Raw streams store no times: such a frame follows the last one at the rate of the stream.
    """
    base = Fraction(stream.time_base or 1)
    rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
    due, step = round(start_of(container) / base), max(1, round(1 / (rate * base)))
    for frame in decoded(container, stream, damage):
        stored = frame.dts if frame.pts is None else frame.pts
        time = due if stored is None else stored
        due = time + (frame.duration or step)
        yield time, frame


def check_time(time_s: float) -> None:
    """Raise DataError for an impossible time; the gap before it would be filled with silence."""
    if time_s > MAX_TIME_S:
        raise DataError(
            "the clock of the video jumps",
            got=f"a time {time_s:.0f} s after the start",
            expected=f"{MAX_TIME_S} s or less",
            hint="cut the file where its clock jumps",
        )
