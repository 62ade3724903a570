"""Encoders for each container, preferred first, and audio codecs that are copied unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from save_deploy.errors import BackendError, DataError

F = TypeVar("F")


@dataclass(frozen=True)
class Format:
    """A container: muxer, video encoders, audio encoder, and audio codecs copied unchanged."""

    muxer: str
    encoders: tuple[str, ...]
    sound_encoder: str
    copied: tuple[str, ...]


_H264 = ("libx264", "libopenh264", "mpeg4")
_MP4 = ("aac", "mp3", "ac3", "eac3", "alac", "opus")
FORMATS = {
    ".mp4": Format("mp4", _H264, "aac", _MP4),
    ".mov": Format("mov", _H264, "aac", (*_MP4[:-1], "pcm_s16le", "pcm_s24le")),
    ".mkv": Format("matroska", _H264, "aac", (*_MP4, "vorbis", "flac", "dts", "pcm_s16le")),
    ".webm": Format("webm", ("libvpx-vp9", "libvpx"), "libopus", ("opus", "vorbis")),
}


@dataclass(frozen=True)
class MatteFormat:
    """A container with transparency: muxer, encoder and its options, pixel format."""

    muxer: str
    encoder: str
    pixels: str
    options: Mapping[str, str]


MATTES = {
    ".mov": MatteFormat(
        "mov", "prores_ks", "yuva444p10le", {"profile": "4444", "alpha_bits": "16"}
    ),
    ".webm": MatteFormat(
        "webm", "libvpx-vp9", "yuva420p",
        {"crf": "12", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
    ),
}  # fmt: skip
_BITS_PER_PIXEL = 0.12  # for the encoder that has no constant quality
OPTIONS = {
    # the model waits for the encoder; veryfast takes a half more time for a half of the bytes
    "libx264": {"crf": "20", "preset": "superfast"},
    "mpeg4": {"flags": "+qscale", "global_quality": str(3 * 118)},
    "libvpx-vp9": {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
    "libvpx": {"crf": "12", "b": "4M", "deadline": "realtime", "cpu-used": "6"},
}


def format_of(path: Path, formats: Mapping[str, F]) -> F:
    """Return the format of a file's suffix.

    formats: FORMATS of videos, or MATTES, which can be transparent.
    Raises DataError for another suffix.
    """
    if path.suffix.lower() not in formats:
        able = ", the formats that can be transparent" if formats is MATTES else ""
        raise DataError(
            "unsupported output format",
            got=path.name,
            expected=f"a file name that ends in {', '.join(formats)}{able}",
        )
    return formats[path.suffix.lower()]


def find_encoder(names: tuple[str, ...]) -> str:
    """Return the first encoder that this build of PyAV can open.

    Raises BackendError without one.
    """
    for name in names:
        if _opens(name, "yuv420p"):
            return name
    raise BackendError(
        "no video encoder",
        got="no working encoder in this build of PyAV",
        expected=" or ".join(names),
        hint="pip install --upgrade av, or --masks DIR instead of a video",
    )


def find_matte_encoder(form: MatteFormat) -> None:
    """Raise BackendError when this build of PyAV cannot open the encoder of a matte."""
    if _opens(form.encoder, form.pixels):
        return
    others = [suffix for suffix, m in MATTES.items() if _opens(m.encoder, m.pixels)]
    raise BackendError(
        "no encoder for a video with transparency",
        got=f"this build of PyAV (its FFmpeg) has no {form.encoder} with {form.pixels} that works",
        expected=form.encoder,
        hint=f"name it {others[0]}, which works here" if others else "pip install --upgrade av",
    )


def _opens(encoder: str, pixels: str) -> bool:
    import av

    try:
        context: Any = av.CodecContext.create(encoder, "w")
        context.width, context.height, context.pix_fmt = 128, 128, pixels
        context.framerate, context.time_base = 25, Fraction(1, 25)
        context.open()
    except (av.FFmpegError, ValueError):  # not in this build, or its library is missing
        return False
    return True


def bit_rate(width: int, height: int, rate: float) -> int:
    """Return the bit rate for an encoder without constant quality."""
    return round(_BITS_PER_PIXEL * width * height * rate)
