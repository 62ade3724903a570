"""The overlay video: the source's frames, times and sound, with the masks drawn in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.data.film import url_of
from save_deploy.data.transforms import Frame
from save_deploy.runtime.pictures import Color
from save_deploy.runtime.video.formats import OPTIONS, bit_rate, find_encoder, format_of
from save_deploy.runtime.video.overlay import outlined
from save_deploy.runtime.video.sinks import MaskedFrame
from save_deploy.runtime.video.source import VideoSource
from save_deploy.runtime.video.track import SoundTrack

_FINEST_MPEG4 = 65_535  # steps per second that MPEG-4 part 2 can count
_MPEG4_STEPS = 60_000  # of which every usual rate is a part
# matrices as FFmpeg numbers them
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 6


class OverlayVideo:
    """A sink. Frames keep their times; odd sizes get one more row or column, as 4:2:0 needs."""

    def __init__(self, path: Path, source: VideoSource, *, sound: bool, color: Color) -> None:
        import av

        self.path, self.source, self.color = path, source, color
        self.form = format_of(path)
        self.encoder = find_encoder(self.form.encoders)
        self.padded: tuple[int, int] | None = None  # (H,W) of frames that were
        self._container: Any = av.open(url_of(path), "w", format=self.form.muxer)
        self._stream: Any = None
        self._has_sound = sound
        self._sound: SoundTrack | None = None

    def add(self, masked: MaskedFrame) -> None:
        shown = outlined(masked.frame.picture, masked.mask, self.color)
        if self._stream is None:
            self._start(shown)
        if self._sound is not None:
            self._container.mux(list(self._sound.until(masked.frame.time_s)))
        frame = self._encodable(shown)
        frame.time_base = self._base
        frame.pts = round(masked.frame.pts * self.source.time_base / self._base)
        frame.duration = round(masked.frame.duration * self.source.time_base / self._base)
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        if self._sound is not None:
            self._container.mux(list(self._sound.until(float("inf"))))
            self._sound.close()
        self._container.close()

    def close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        with contextlib.suppress(
            Exception
        ):  # closing a broken file writes its end, and fails again
            self._container.close()

    def notes(self) -> Iterator[str]:
        """What is not as in the source."""
        if self.padded is not None:
            height, width = self.padded
            yield f"{width}x{height} became {self._stream.width}x{self._stream.height}: even sizes"
        if self.encoder != self.form.encoders[0]:
            yield f"encoded with {self.encoder}: this build of PyAV has no {self.form.encoders[0]}"
        if self._sound is not None and not self._sound.copied:
            kind = self.source.sound_codec
            yield f"the sound was encoded anew: {kind} is not copied into {self.path.suffix}"

    def _start(self, shown: Frame) -> None:
        height, width = shown.shape[:2]
        self.padded = (height, width) if height % 2 or width % 2 else None
        source, base = self.source, self.source.time_base
        if self.encoder == "mpeg4" and base.denominator > _FINEST_MPEG4:
            base = Fraction(1, _MPEG4_STEPS)
        self._base = base
        rate = source.rate if source.section.most_fps is None else min(source.rate, _rate(source))
        stream = self._container.add_stream(
            self.encoder, rate=rate, options=OPTIONS.get(self.encoder, {})
        )
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = base
        if self.encoder not in OPTIONS:
            context.bit_rate = bit_rate(width, height, float(rate))
        if source.aspect:
            turned = (height, width) == (source.width, source.height) != (width, height)
            context.sample_aspect_ratio = 1 / source.aspect if turned else source.aspect
        # the matrix pictures were decoded with, so that colors come back as they were
        self._matrix = source.colorspace if source.colorspace in (_BT709, _UNSPECIFIED) else _BT601
        if self.encoder == "mpeg4":  # which cannot say so
            self._matrix = _BT601
        context.colorspace = self._matrix
        context.color_range = 1  # limited
        self._stream = stream
        if self._has_sound:
            self._sound = SoundTrack(source, self._container, self.form)

    def _encodable(self, shown: Frame) -> Any:
        import av
        from av.video.reformatter import Colorspace

        height, width = shown.shape[:2]
        if height % 2 or width % 2:
            shown = np.pad(shown, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return av.VideoFrame.from_ndarray(shown, "rgb24").reformat(
            width=self._stream.width,  # other than the frame's where a file changes its size
            height=self._stream.height,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709 if self._matrix == _BT709 else Colorspace.ITU601,
        )


def _rate(source: VideoSource) -> Fraction:
    return Fraction(source.section.most_fps or 0).limit_denominator(1001)
