"""Checks of user input to a pipeline: frames, sounds, embeddings, times.

Paths are accepted, and everything that numpy converts to an array (lists, tensors, Pillow images).
Values that would produce a wrong mask (integer sound, NaN, channels first) raise DataError.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from save_deploy.config import AUDIO_DIM
from save_deploy.data.audio import MAX_CHANNELS, Waveform, check_rate, resample
from save_deploy.data.downmix import to_mono
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.pictures import MAX_PIXELS, MAX_SIDE, as_rgb, read_frame
from save_deploy.data.transforms import Frame
from save_deploy.errors import BundleError, DataError, ParityError

# Float files may exceed 1. Even quiet integer samples exceed this if they were not divided by 32768.
# Same value as kMaxPeak in runtime/cpp/src/sound.hpp.
MAX_PEAK = 16.0
MAX_THREADS = 4096
# Samples of one second at common rates. The doubtful ones are also whole seconds at 16 kHz.
_OTHER_SECONDS = (11_025, 22_050, 44_100, 88_200)
_DOUBTFUL_SECONDS = (48_000, 96_000)
_SOUND = "float (n,), 16 kHz mono in [-1,1]"
_RATED_SOUND = "float (n,) or (n,channels) in [-1,1]"
_FRAME = "uint8 (H,W,3), RGB"
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes that read_frame accepts in files


def as_sound(sound: Any, rate: int | None = None) -> Waveform:
    """Return a sound as float32 (n,), mono at 16 kHz.

    sound: floats (n,), (n,1) or (1,n) as array, list or tensor, or the path of a sound or video file.
    rate: sample rate in Hz. With it the sound may have several channels, (n,channels) or
    (channels,n), which are mixed like those of a file.
    Sample values are checked later, by check_window. Raises DataError.
    """
    if isinstance(sound, (str, os.PathLike)) and rate is None:
        from save_deploy.data.sound import read_sound  # a start needs few modules

        return read_sound(as_path(sound, "sound"))
    expected = _SOUND if rate is None else _RATED_SOUND
    array = _array(sound, "sound", expected)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    flat = array.ndim == 1 or (array.ndim == 2 and rate is not None and array.size)
    if not flat or not np.issubdtype(array.dtype, np.floating):
        raise DataError("wrong sound", got=_got(array), expected=expected, hint=_sound_hint(array))
    with np.errstate(over="ignore"):  # check_window refuses the resulting infinities
        array = array.astype(np.float32, copy=False)
    return array if rate is None else _at_16_khz(array, rate)


def _at_16_khz(array: NDArray[np.float32], rate: Any) -> Waveform:
    """Mix and resample (n,), (n,channels) or (channels,n) at `rate` Hz to (m,) at 16 kHz."""
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)):
        raise DataError("wrong sample rate", got=repr(rate)[:80], expected="an integer in Hz")
    check_rate(int(rate))
    if array.ndim == 2:
        frames = array if array.shape[0] >= array.shape[1] else array.T
        if frames.shape[1] > MAX_CHANNELS:
            raise DataError(
                "wrong number of channels",
                got=str(frames.shape[1]),
                expected=f"1 to {MAX_CHANNELS}",
            )
        array = to_mono(frames)
    # check_window refuses non-finite samples later; resampling would spread them to other seconds
    return resample(array, int(rate)) if np.isfinite(array).all() else array


def check_second(sound: Waveform) -> None:
    """Raise DataError if a sound (n,) without a rate has the length of one second at another rate.

    Warn if both another rate and 16 kHz are possible.
    """
    n = sound.size
    if n in _OTHER_SECONDS:
        raise DataError(
            "sound of another rate",
            got=f"{n} samples, which are one second at {n / 1000:g} kHz",
            expected=f"{_SOUND}, or the rate as well",
            hint=f"rate={n}, or rate={SAMPLE_RATE_HZ} if it is {n / SAMPLE_RATE_HZ:.3f} s at 16 kHz",
        )
    if n in _DOUBTFUL_SECONDS:
        warnings.warn(
            f"{n} samples are read as {n // SAMPLE_RATE_HZ} s at 16 kHz; pass rate={n} if they are one "
            f"second at {n // 1000} kHz, else rate={SAMPLE_RATE_HZ}",
            stacklevel=4,
        )


def check_window(window: Waveform) -> None:
    """Raise DataError for a second of sound (n,) that cannot be samples in [-1,1].

    That is an empty or non-finite one, one far above 1, and one of integers above 1.
    """
    if not window.size:
        raise DataError("sound without samples", got="0 samples", expected="at least one")
    peak = float(np.abs(window).max())  # NaN if any sample is NaN
    if not math.isfinite(peak):
        raise DataError("sound contains NaN or infinite samples", expected="finite samples")
    if peak > MAX_PEAK:
        raise DataError(
            "sound is far too loud",
            got=f"samples up to {peak:.6g}",
            expected=f"samples in [-1,1]; above {MAX_PEAK:g} they are taken for integers",
            hint="divide samples of 16 bits by 32768",
        )
    if peak > 1 and np.array_equal(window, np.rint(window)):
        raise DataError(
            "sound of whole numbers",
            got=f"integers up to {peak:.6g}",
            expected="samples in [-1,1]",
            hint="divide samples of 16 bits by 32768",
        )


def as_frame(frame: Any) -> Frame:
    """Return a frame as uint8 (H,W,3).

    frame: array, list or tensor uint8 (H,W,3) of any memory layout, a Pillow image, or the path of
    a PNG or JPEG.
    Raises DataError.
    """
    if isinstance(frame, (str, os.PathLike)):
        return read_frame(as_path(frame, "frame"))
    if isinstance(frame, Image.Image):
        frame = _rgb(frame)
    array = _array(frame, "frame", _FRAME)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError("wrong frame", got=_got(array), expected=_FRAME, hint=_frame_hint(array))
    height, width = array.shape[:2]
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise DataError(
            "frame of a size that cannot be used",
            got=f"{width} x {height}",
            expected=f"1 to {MAX_SIDE} pixels a side, {MAX_PIXELS} in all",
        )
    return array


def as_images(images: Any, side: int) -> NDArray[np.uint8]:
    """Return frames at network size as uint8 (F,S,S,3), F > 0. Raises DataError."""
    expected = f"uint8 (F,{side},{side},3), one frame or more"
    array = _array(images, "images", expected)
    if array.dtype != np.uint8 or array.shape[1:] != (side, side, 3) or not array.size:
        raise DataError("wrong images", got=_got(array), expected=expected)
    return array


def as_embeddings(embeddings: Any, n: int) -> NDArray[np.float32]:
    """Return the embeddings of n frames as finite float32 (n,128). Raises DataError."""
    expected = f"float32 ({n},{AUDIO_DIM}), from embed()"
    array = _array(embeddings, "audio embedding", expected)
    if array.shape != (n, AUDIO_DIM) or not np.issubdtype(array.dtype, np.floating):
        raise DataError("wrong audio embedding", got=_got(array), expected=expected)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise DataError("audio embedding contains NaN or infinity", expected="finite values")
    return array


def as_time(time_s: Any) -> float:
    """Return seconds as float; NaN if it is not a number."""
    try:
        return float(time_s)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def as_threshold(threshold: Any) -> float:
    """Return a probability in (0,1) as float. Raises DataError."""
    value = as_time(threshold)
    if not 0 < value < 1:
        raise DataError(
            "wrong threshold", got=repr(threshold)[:80],
            expected="a probability above 0 and below 1; the default is 0.5",
        )  # fmt: skip
    return value


def as_folder(bundle: Any) -> Path:
    """Return the path of a bundle. Raises BundleError if it is not a path."""
    found = _path(bundle)
    if found is None:
        raise BundleError(
            "wrong bundle", got=repr(bundle)[:80], expected="the path of a folder, str or Path"
        )
    return found


def as_path(given: Any, what: str) -> Path:
    """Return a path as Path. Raises DataError if it is not a path."""
    found = _path(given)
    if found is None:
        raise DataError(f"wrong {what}", got=repr(given)[:80], expected="a path, str or Path")
    return found


def _path(given: Any) -> Path | None:
    try:
        path = os.fspath(given)
    except TypeError:
        return None
    return Path(path) if isinstance(path, str) and path and "\0" not in path else None


def require_finite(logits: NDArray[np.float32]) -> None:
    """Raise ParityError for NaN or infinite logits."""
    if not np.isfinite(logits).all():
        raise ParityError(
            "the backend produced NaN or infinite logits",
            expected="finite values",
            hint="export with --fp32",
        )


def check_threads(threads: Any, streams: Any = 1) -> None:
    """Raise DataError for threads that are neither None nor 1 to 4096, or streams that are not."""
    for what, number in (("threads", 1 if threads is None else threads), ("streams", streams)):
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not (whole and 1 <= number <= MAX_THREADS):
            raise DataError(
                f"wrong number of {what}", got=repr(number)[:80], expected=f"1 to {MAX_THREADS}"
            )


def _array(value: Any, what: str, expected: str) -> NDArray[Any]:
    if isinstance(value, (str, bytes, os.PathLike)):
        raise DataError(f"wrong {what}", got=repr(value)[:80], expected=expected)
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(
            f"wrong {what}",
            got="a masked array",
            expected=expected,
            hint="fill the masked values: array.filled(0)",
        )
    try:
        array = np.asarray(value)
    except Exception as error:  # rows of unequal length and GPU tensors raise various types
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"wrong {what}", got=first[:300], expected=expected) from error
    if array.dtype == object:
        raise DataError(f"wrong {what}", got=type(value).__name__, expected=expected)
    return array


def _got(array: NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"


def _rgb(picture: Image.Image) -> Frame:
    """Convert to RGB as read_frame does for a file, but without EXIF rotation."""
    if (
        picture.mode not in _MODES
    ):  # Pillow clips 32-bit modes at 255, and CMYK needs a color profile
        raise DataError(
            "wrong frame",
            got=f"a picture of mode {picture.mode}",
            expected=f"{_FRAME}, or a picture of mode {', '.join(_MODES)}",
        )
    try:
        picture = picture.copy()
        picture.info.pop("transparency", None)
        return as_rgb(picture)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reads the file only here
        raise DataError("wrong frame", got=str(error), expected=_FRAME) from error


def _sound_hint(array: NDArray[Any]) -> str:
    if array.ndim == 2:
        axis = int(np.argmin(array.shape))
        return (
            f"rate=16000, or the sound's rate, mixes {array.shape[axis]} channels; "
            f"sound.mean(axis={axis}) averages them"
        )
    if array.dtype == np.int16:
        return "sound / 32768 converts int16 to floats in [-1,1]"
    return ""


def _frame_hint(array: NDArray[Any]) -> str:
    if array.ndim == 2:
        return "np.stack([frame] * 3, axis=-1) converts gray to RGB"
    if array.ndim == 3 and array.shape[2] == 4:
        return "frame[..., :3] drops the alpha channel"
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        return "frame.transpose(1, 2, 0) converts (3,H,W) to (H,W,3)"
    if np.issubdtype(array.dtype, np.floating):
        return "(255 * frame).round().astype(np.uint8) converts floats in [0,1]"
    return ""
