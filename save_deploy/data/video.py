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
