"""Video files -> frames at given times and the sound, one frame at a time in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from save_deploy.data.audio import MIN_SECONDS, Waveform
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.transforms import Frame
from save_deploy.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer

ROUNDING_S = 1e-6  # times in a file are fractions, those asked for are floats
PREROLL_S = 0.2  # a sound decoder is exact only after a few packets


class Orientation(NamedTuple):
    """How stored pictures are turned to be shown: rows and columns exchanged, then mirrored. Phones
    write it into the file and leave the pictures as the sensor gives them."""

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False


def read_video_frames(path: Path, times_s: Sequence[float]) -> list[Frame]:
    """The frame shown at each time: the last one at or before it, uint8 (H,W,3) RGB, native size.

    Times count from the start of the video, in any order; after its end the last frame is taken,
    before its first frame that one. Raises DataError for a file that is missing or corrupt or has
    no video stream.
    """
    order = sorted(range(len(times_s)), key=lambda i: times_s[i])
    found: dict[int, Frame] = {}
    with opened(path) as container:
        if not container.streams.video:
            raise DataError("no video in the file", got=str(path), expected="a video stream")
        start_s, shown, turn = start_of(container), None, Orientation()
        for frame in container.decode(video=0):
            if shown is None:
                turn = orientation_of(frame)
            while shown is not None and len(found) < len(order):
                wanted = order[len(found)]
                if frame.time is None or frame.time - start_s <= times_s[wanted] + ROUNDING_S:
                    break
                found[wanted] = pixels(shown, turn)
            if len(found) == len(order):
                break
            shown = frame
        if shown is None:
            raise DataError("no frame can be decoded", got=str(path), expected="a video")
        for wanted in order[len(found) :]:
            found[wanted] = pixels(shown, turn)
    return [found[i] for i in range(len(times_s))]


def read_video_sound(path: Path, *, min_seconds: float = MIN_SECONDS) -> Waveform:
    """The sound of a video: float32 (n,) mono at 16 kHz in [-1,1], from the start of the video.

    Channels are averaged. Raises DataError for a file that is missing or corrupt, has no sound, or
    less of it than min_seconds.
    """
    with opened(path) as container:
        if not container.streams.audio:
            raise DataError("no sound in the video", got=str(path), expected="an audio stream")
        pieces = list(_mono(container))
    waveform = np.concatenate([np.zeros(0, np.float32), *pieces])
    if waveform.size < min_seconds * SAMPLE_RATE_HZ:
        raise DataError(
            "sound is too short",
            got=f"{waveform.size / SAMPLE_RATE_HZ:.3f} s in {path}",
            expected=f"{min_seconds:.3f} s or more",
        )
    if not np.isfinite(waveform).all():
        raise DataError(
            "sound contains NaN or infinite samples", got=str(path), expected="finite samples"
        )
    return np.clip(waveform, -1.0, 1.0)


def video_seconds(path: Path) -> float:
    """Length of a video with pictures and sound, without decoding it.

    Raises DataError for a file that is missing or corrupt, or has no video or no sound track.
    """
    import av

    with opened(path) as container:
        if not container.streams.video:
            raise DataError("no video in the file", got=str(path), expected="a video stream")
        if not container.streams.audio:
            raise DataError("no sound in the video", got=str(path), expected="an audio stream")
        if container.duration is not None:
            return float(container.duration / av.time_base)
        ends = [p.pts * p.time_base for p in container.demux(video=0) if p.pts is not None]
        return float(max(ends, default=0)) - start_of(container)


def read_video_stretch(
    path: Path, start_s: float, seconds: float, times_s: Sequence[float]
) -> tuple[list[Frame], Waveform]:
    """Frames at start_s + each time (ascending, as read_video_frames takes them) and the sound of
    the stretch, float32 (seconds * 16000,), silence where the track has none. What comes before is
    sought over, not decoded. Raises DataError as read_video_frames and read_video_sound do.
    """
    with opened(path) as container:
        if not container.streams.video:
            raise DataError("no video in the file", got=str(path), expected="a video stream")
        frames = _frames_from(container, [start_s + t for t in times_s])
        if len(frames) < len(times_s):
            raise DataError("no frame can be decoded", got=str(path), expected="a video")
    with opened(path) as container:
        if not container.streams.audio:
            raise DataError("no sound in the video", got=str(path), expected="an audio stream")
        waveform = _sound_from(container, start_s, seconds)
    if not np.isfinite(waveform).all():
        raise DataError(
            "sound contains NaN or infinite samples", got=str(path), expected="finite samples"
        )
    return frames, np.clip(waveform, -1.0, 1.0)


def _frames_from(container: InputContainer, times_s: Sequence[float]) -> list[Frame]:
    """One per time, ascending; none when nothing can be decoded."""
    seek(container, times_s[0])
    start_s, shown, found = start_of(container), None, list[Frame]()
    turn = Orientation()
    for frame in container.decode(video=0):
        if shown is None:
            turn = orientation_of(frame)
        while shown is not None and len(found) < len(times_s):
            if frame.time is None or frame.time - start_s <= times_s[len(found)] + ROUNDING_S:
                break
            found.append(pixels(shown, turn))
        if len(found) == len(times_s):
            break
        shown = frame
    if shown is not None:
        found += [pixels(shown, turn) for _ in times_s[len(found) :]]
    return found


def _sound_from(container: InputContainer, start_s: float, seconds: float) -> Waveform:
    import av

    seek(container, start_s - PREROLL_S)
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE_HZ)
    origin_s, first_s, pieces = start_of(container), None, []
    for frame in container.decode(audio=0):
        at_s = start_s if frame.time is None else frame.time - origin_s
        first_s = at_s if first_s is None else first_s
        if at_s > start_s + seconds + PREROLL_S:
            break
        pieces += list(averaged(resampler.resample(frame)))
    if first_s is not None:
        pieces += list(averaged(resampler.resample(None)))
    n, skipped = round(seconds * SAMPLE_RATE_HZ), round((start_s - (first_s or 0)) * SAMPLE_RATE_HZ)
    heard = np.concatenate([np.zeros(max(0, -skipped), np.float32), *pieces])[max(0, skipped) :][:n]
    return np.pad(heard, (0, n - heard.size)).astype(np.float32)


def seek(container: InputContainer, time_s: float) -> None:
    """To the last key frame at or before a time from the start of the video."""
    import av

    if time_s > 0:
        container.seek(round((time_s + start_of(container)) * av.time_base))


def _mono(container: InputContainer) -> Iterator[Waveform]:
    """Pieces at 16 kHz; silence first where the sound starts after the video."""
    import av

    # only the rate is converted: a mix to mono would be weighted by 0.707, not averaged
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE_HZ)
    start_s, first = start_of(container), True
    for frame in container.decode(audio=0):
        if first and frame.time is not None:
            late = max(0.0, frame.time - start_s)
            yield np.zeros(round(late * SAMPLE_RATE_HZ), np.float32)
        first = False
        yield from averaged(resampler.resample(frame))
    if not first:
        yield from averaged(resampler.resample(None))


def averaged(frames: Sequence[Any]) -> Iterator[Waveform]:
    """Sound frames of any number of channels -> pieces float32 (n,), the mean of the channels."""
    for frame in frames:
        yield frame.to_ndarray().mean(axis=0, dtype=np.float32)  # (channels,n) -> (n,)


def orientation_of(frame: Any) -> Orientation:
    """What the display matrix of a decoded frame says; the same for all frames of a file.

    Asked once per file: av keeps every frame whose side data was read until Python collects cycles.
    """
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            # row vectors: (x,y) is shown at (x,y) @ [[a,b],[c,d]]; slanted ones are not in use
            (a, b), (c, d) = np.frombuffer(data, "=i4").reshape(3, 3)[:2, :2]
            if abs(b) > abs(a):
                return Orientation(True, bool(c < 0), bool(b < 0))
            return Orientation(False, bool(a < 0), bool(d < 0))
    return Orientation()


def pixels(frame: Any, orientation: Orientation) -> Frame:
    """A decoded frame -> uint8 (H,W,3) RGB as players show it."""
    picture = frame.to_ndarray(format="rgb24")
    if orientation.transposed:
        picture = picture.swapaxes(0, 1)
    step_y, step_x = (-1 if m else 1 for m in (orientation.mirrored_y, orientation.mirrored_x))
    return np.ascontiguousarray(picture[::step_y, ::step_x])


def start_of(container: InputContainer) -> float:
    """Where the times of a file begin: its first picture or sound, seldom at 0 in recordings."""
    import av

    return (container.start_time or 0) / av.time_base


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """The file, while the block runs. Raises DataError when it is missing or cannot be read."""
    import av

    if not path.is_file():
        raise DataError("video not found", got=str(path), expected="an mp4, mkv or webm file")
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DataError(
            "video cannot be read", got=f"{path}: {error}", expected="an mp4, mkv or webm file"
        ) from error
