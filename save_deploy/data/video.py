"""Reading of video frames at given times and of the sound, with one frame at a time in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import MIN_SECONDS, Waveform
from save_deploy.data.film import (
    Damage,
    opened,
    picture_track,
    pictures,
    required_sound,
    seek,
    start_of,
)
from save_deploy.data.film_sound import sound_pieces
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.transforms import Frame
from save_deploy.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer

ROUNDING_S = 1e-6  # tolerance: times in a file are fractions, requested times are floats
MAX_SOUND_S = 14_400  # maximum length of a sound that is read into memory


class Orientation(NamedTuple):
    """Rotation of stored images: transpose rows and columns, then mirror.

    Phones store images in sensor orientation and write the rotation into the file.
    """

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False


AS_STORED = Orientation()


def read_video_frames(path: Path, times_s: Sequence[float]) -> list[Frame]:
    """Return the frame shown at each time, uint8 (H,W,3) RGB at native size.

    It is the last frame at or before the time. Times are in seconds from the start of the video, in
    any order. A time past the end gives the last frame, one before the first frame the first.
    Raises DataError for a file that is missing or corrupt or has no video stream.
    """
    order = sorted(range(len(times_s)), key=lambda i: times_s[i])
    with opened(path) as container:
        frames = _frames_at(container, path, [times_s[i] for i in order])
    found = dict(zip(order, frames, strict=True))
    return [found[i] for i in range(len(times_s))]


def read_video_sound(path: Path, *, min_seconds: float = MIN_SECONDS, hint: str = "") -> Waveform:
    """Return the sound of a video from its start: float32 (n,), 16 kHz mono in [-1,1].

    Channels are mixed as FFmpeg does, and gaps are silent.
    hint: remedy in the error for a short sound.
    Raises DataError for a file that is missing or corrupt, has no sound, or has a sound shorter
    than min_seconds or longer than MAX_SOUND_S.
    """
    pieces, n = [np.zeros(0, np.float32)], 0
    with opened(path) as container:
        track = required_sound(container, path)
        for piece in sound_pieces(container, track, Damage("sound", strict=True)):
            pieces.append(piece)
            n += piece.size
            if n > MAX_SOUND_S * SAMPLE_RATE_HZ:
                raise DataError(
                    "sound is too long", got=str(path), expected=f"{MAX_SOUND_S} s or less"
                )
    if n < min_seconds * SAMPLE_RATE_HZ:
        raise DataError(
            "sound is too short",
            got=f"{n / SAMPLE_RATE_HZ:.3f} s in {path}",
            expected=f"{min_seconds:.3f} s or more",
            hint=hint,
        )
    return np.concatenate(pieces)


def video_seconds(path: Path) -> float:
    """Return the length in s of a video with sound, without decoding it.

    Raises DataError for a file that is missing or corrupt, or has no video or no sound track.
    """
    import av

    with opened(path) as container:
        track = picture_track(container, path)
        required_sound(container, path)
        if container.duration is not None:
            return float(container.duration / av.time_base)
        ends = [p.pts * p.time_base for p in container.demux(track) if p.pts is not None]
        return float(max(ends, default=0) - start_of(container))


def read_video_stretch(
    path: Path, start_s: float, seconds: float, times_s: Sequence[float]
) -> tuple[list[Frame], Waveform]:
    """Return frames at start_s + each time, and the sound from start_s on.

    times_s: ascending, as for read_video_frames.
    The sound is float32 (seconds * 16000,), silent where the track has none. Content before start_s
    is skipped by seeking. Raises DataError as read_video_frames and read_video_sound do.
    """
    with opened(path) as container:
        frames = _frames_at(container, path, [start_s + t for t in times_s])
    with opened(path) as container:
        track = required_sound(container, path)
        damage = Damage("sound", strict=True)
        pieces = sound_pieces(container, track, damage, start_s=start_s, seconds=seconds)
        waveform = np.concatenate([np.zeros(0, np.float32), *pieces])
    return frames, np.pad(waveform, (0, round(seconds * SAMPLE_RATE_HZ) - waveform.size))


def _frames_at(container: InputContainer, path: Path, times_s: Sequence[float]) -> list[Frame]:
    """Return one frame per time; the times are ascending."""
    track = picture_track(container, path)
    seek(container, times_s[0] if times_s else 0)
    base, start_s = track.time_base, start_of(container)
    shown, turn, found = None, AS_STORED, list[Frame]()
    for time, frame in pictures(container, track, Damage("video", strict=True)):
        if shown is None:
            turn = orientation_of(frame)
        while shown is not None and len(found) < len(times_s):
            if time * base - start_s <= times_s[len(found)] + ROUNDING_S:
                break
            found.append(pixels(shown, turn))
        if len(found) == len(times_s):
            break
        shown = frame
    if shown is None:
        raise DataError("no frame can be decoded", got=str(path), expected="a video")
    found += [pixels(shown, turn) for _ in times_s[len(found) :]]
    return found


def orientation_of(frame: Any) -> Orientation:
    """Return the rotation from the display matrix of a decoded frame.

    It is the same for all frames of a file. Call this once per file: av keeps every frame whose
    side data was read until Python collects cycles.
    """
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            # row vectors: (x,y) is shown at (x,y) @ [[a,b],[c,d]], a multiple of 90 degrees
            (a, b), (c, d) = np.frombuffer(data, "=i4").reshape(3, 3)[:2, :2]
            if abs(b) > abs(a):
                return Orientation(True, bool(c < 0), bool(b < 0))
            return Orientation(False, bool(a < 0), bool(d < 0))
    return AS_STORED


def pixels(frame: Any, orientation: Orientation) -> Frame:
    """Convert a decoded frame to uint8 (H,W,3) RGB with its rotation applied."""
    return np.ascontiguousarray(upright(frame.to_ndarray(format="rgb24"), orientation))


def upright(picture: NDArray[np.uint8], orientation: Orientation) -> NDArray[np.uint8]:
    """Return a stored picture or plane uint8 (H,W,...) with its rotation applied, as a view."""
    if orientation.transposed:
        picture = picture.swapaxes(0, 1)
    step_y, step_x = (-1 if m else 1 for m in (orientation.mirrored_y, orientation.mirrored_x))
    return picture[::step_y, ::step_x]
