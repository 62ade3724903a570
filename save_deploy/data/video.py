"""Video files -> frames at given times and the sound, one frame at a time in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from save_deploy.data.audio import MIN_SECONDS, Waveform
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.transforms import Frame
from save_deploy.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer

ROUNDING_S = 1e-6  # times in a file are fractions, those asked for are floats
PREROLL_S = 0.2  # a sound decoder is exact only after a few packets


def read_video_frames(path: Path, times_s: Sequence[float]) -> list[Frame]:
    """The frame shown at each time: the last one at or before it, uint8 (H,W,3) RGB, native size.

    Times count from the start of the video, in any order; after its end the last frame is taken,
    before its first frame that one. Raises DataError for a file that is missing or corrupt or has
    no video stream.
    """
    order = sorted(range(len(times_s)), key=lambda i: times_s[i])
    found: dict[int, Frame] = {}
    with _opened(path) as container:
        if not container.streams.video:
            raise DataError("no video in the file", got=str(path), expected="a video stream")
        start_s, shown = _start_s(container), None
        for frame in container.decode(video=0):
            while shown is not None and len(found) < len(order):
                wanted = order[len(found)]
                if frame.time is None or frame.time - start_s <= times_s[wanted] + ROUNDING_S:
                    break
                found[wanted] = _pixels(shown)
            if len(found) == len(order):
                break
            shown = frame
        if shown is None:
            raise DataError("no frame can be decoded", got=str(path), expected="a video")
        for wanted in order[len(found) :]:
            found[wanted] = _pixels(shown)
    return [found[i] for i in range(len(times_s))]


def read_video_sound(path: Path, *, min_seconds: float = MIN_SECONDS) -> Waveform:
    """The sound of a video: float32 (n,) mono at 16 kHz in [-1,1], from the start of the video.

    Channels are averaged. Raises DataError for a file that is missing or corrupt, has no sound, or
    less of it than min_seconds.
    """
    with _opened(path) as container:
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

    with _opened(path) as container:
        if not container.streams.video:
            raise DataError("no video in the file", got=str(path), expected="a video stream")
        if not container.streams.audio:
            raise DataError("no sound in the video", got=str(path), expected="an audio stream")
        if container.duration is not None:
            return float(container.duration / av.time_base)
        ends = [p.pts * p.time_base for p in container.demux(video=0) if p.pts is not None]
        return float(max(ends, default=0)) - _start_s(container)


def read_video_stretch(
    path: Path, start_s: float, seconds: float, times_s: Sequence[float]
) -> tuple[list[Frame], Waveform]:
    """Frames at start_s + each time (ascending, as read_video_frames takes them) and the sound of
    the stretch, float32 (seconds * 16000,), silence where the track has none. What comes before is
    sought over, not decoded. Raises DataError as read_video_frames and read_video_sound do.
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise DataError("no video in the file", got=str(path), expected="a video stream")
        frames = _frames_from(container, [start_s + t for t in times_s])
        if len(frames) < len(times_s):
            raise DataError("no frame can be decoded", got=str(path), expected="a video")
    with _opened(path) as container:
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
    _seek(container, times_s[0])
    start_s, shown, found = _start_s(container), None, list[Frame]()
    for frame in container.decode(video=0):
        while shown is not None and len(found) < len(times_s):
            if frame.time is None or frame.time - start_s <= times_s[len(found)] + ROUNDING_S:
                break
            found.append(_pixels(shown))
        if len(found) == len(times_s):
            break
        shown = frame
    if shown is not None:
        found += [_pixels(shown) for _ in times_s[len(found) :]]
    return found


def _sound_from(container: InputContainer, start_s: float, seconds: float) -> Waveform:
    import av

    _seek(container, start_s - PREROLL_S)
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE_HZ)
    origin_s, first_s, pieces = _start_s(container), None, []
    for frame in container.decode(audio=0):
        at_s = start_s if frame.time is None else frame.time - origin_s
        first_s = at_s if first_s is None else first_s
        if at_s > start_s + seconds + PREROLL_S:
            break
        pieces += list(_averaged(resampler.resample(frame)))
    if first_s is not None:
        pieces += list(_averaged(resampler.resample(None)))
    n, skipped = round(seconds * SAMPLE_RATE_HZ), round((start_s - (first_s or 0)) * SAMPLE_RATE_HZ)
    heard = np.concatenate([np.zeros(max(0, -skipped), np.float32), *pieces])[max(0, skipped) :][:n]
    return np.pad(heard, (0, n - heard.size)).astype(np.float32)


def _seek(container: InputContainer, time_s: float) -> None:
    """To the last key frame at or before a time from the start of the video."""
    import av

    if time_s > 0:
        container.seek(round((time_s + _start_s(container)) * av.time_base))


def _mono(container: InputContainer) -> Iterator[Waveform]:
    """Pieces at 16 kHz; silence first where the sound starts after the video."""
    import av

    # only the rate is converted: a mix to mono would be weighted by 0.707, not averaged
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE_HZ)
    start_s, first = _start_s(container), True
    for frame in container.decode(audio=0):
        if first and frame.time is not None:
            late = max(0.0, frame.time - start_s)
            yield np.zeros(round(late * SAMPLE_RATE_HZ), np.float32)
        first = False
        yield from _averaged(resampler.resample(frame))
    if not first:
        yield from _averaged(resampler.resample(None))


def _averaged(frames: Sequence[Any]) -> Iterator[Waveform]:
    for frame in frames:
        yield frame.to_ndarray().mean(axis=0, dtype=np.float32)  # (channels,n) -> (n,)


def _pixels(frame: Any) -> Frame:
    return np.ascontiguousarray(frame.to_ndarray(format="rgb24"))


def _start_s(container: InputContainer) -> float:
    import av

    return (container.start_time or 0) / av.time_base


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
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
