"""Overlay video: the source's frames, times and sound, with the masks drawn on the frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.film import url_of
from save_deploy.runtime.pictures import Color
from save_deploy.runtime.video.formats import (
    FORMATS,
    OPTIONS,
    bit_rate,
    find_encoder,
    format_of,
)
from save_deploy.runtime.video.overlay import outlined
from save_deploy.runtime.video.planes import PIXELS, Brush, canvas_of
from save_deploy.runtime.video.sinks import MaskedFrame
from save_deploy.runtime.video.source import VideoSource
from save_deploy.runtime.video.track import SoundTrack

_FINEST_MPEG4 = 65_535  # largest time base of MPEG-4 part 2, in steps per second
_MPEG4_STEPS = 60_000  # steps per second; a multiple of all common rates
# FFmpeg's numbers of color matrices
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 6


class OverlayVideo:
    """Sink for a video. Frames keep their times; odd sizes are padded, because 4:2:0 needs even."""

    def __init__(self, path: Path, source: VideoSource, *, sound: bool, color: Color) -> None:
        import av

        self.path, self.source, self.color = path, source, color
        self.form = format_of(path, FORMATS)
        self.encoder = find_encoder(self.form.encoders)
        self.padded: tuple[int, int] | None = None  # original (H,W) of padded frames
        self._container: Any = av.open(url_of(path), "w", format=self.form.muxer)
        self._stream: Any = None
        self._has_sound = sound
        self._sound: SoundTrack | None = None

    def add(self, masked: MaskedFrame) -> None:
        if self._stream is None:
            self._start(masked.frame.size)
        if self._sound is not None:
            self._container.mux(list(self._sound.until(masked.frame.time_s)))
        frame = self._drawn(masked)
        frame.time_base = self._base
        frame.pts = round(masked.frame.pts * self.source.time_base / self._base)
        frame.duration = round(masked.frame.duration * self.source.time_base / self._base)
        self._container.mux(self._stream.encode(frame))

    def _drawn(self, masked: MaskedFrame) -> Any:
        """Return the frame with its marks, for the stream."""
        canvas = canvas_of(masked.frame, (self._stream.height, self._stream.width))
        if canvas is None:
            shown = outlined(masked.frame.picture, masked.mask, self.color)
            return encodable(shown, self._stream)
        self._brush.draw(canvas, masked.mask)
        return canvas

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        if self._sound is not None:
            self._container.mux(list(self._sound.until(float("inf"))))
            self._sound.close()
        self._container.close()

    def close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        with contextlib.suppress(Exception):  # closing writes the file's end, which fails again
            self._container.close()

    def notes(self) -> Iterator[str]:
        """Yield the differences from the source, for the user."""
        if self.padded is not None:
            height, width = self.padded
            yield f"{width}x{height} became {self._stream.width}x{self._stream.height}: even sizes"
        if self.encoder != self.form.encoders[0]:
            yield f"encoded with {self.encoder}: this build of PyAV has no {self.form.encoders[0]}"
        if self._sound is not None and not self._sound.copied:
            kind = self.source.sound_codec
            yield f"the sound was encoded again: {kind} is not stored in {self.path.suffix}"

    def _start(self, size: tuple[int, int]) -> None:
        """Add the streams. size: (H,W) of the first frame."""
        height, width = size
        self.padded = (height, width) if height % 2 or width % 2 else None
        base = self.source.time_base
        if self.encoder == "mpeg4" and base.denominator > _FINEST_MPEG4:
            base = Fraction(1, _MPEG4_STEPS)
        self._base = base
        stream = picture_stream(
            self._container, self.source, self.encoder, (height, width),
            base=base, options=OPTIONS.get(self.encoder, {}),
        )  # fmt: skip
        if self.encoder not in OPTIONS:
            stream.codec_context.bit_rate = bit_rate(width, height, float(stream.average_rate))
        if self.encoder == "mpeg4":  # which cannot say another
            stream.codec_context.colorspace = _BT601
        self._stream = stream
        self._brush = Brush(self.color, bt709=is_bt709(stream))
        if self._has_sound:
            self._sound = SoundTrack(self.source, self._container, self.form)


def picture_stream(
    container: Any,
    source: VideoSource,
    encoder: str,
    size: tuple[int, int],
    *,
    base: Fraction,
    pixels: str = PIXELS,
    options: Mapping[str, str],
) -> Any:
    """Add a stream for pictures of size (H,W) to a container: rate, pixel aspect and color matrix of
    the source, even sizes for yuv420p. base: what times are counted in."""
    height, width = size
    rate = source.rate
    if source.section.most_fps is not None:
        rate = min(rate, Fraction(source.section.most_fps).limit_denominator(1001))
    stream = container.add_stream(encoder, rate=rate, options=dict(options))
    even = pixels == PIXELS
    stream.width, stream.height = width + even * (width % 2), height + even * (height % 2)
    stream.pix_fmt = pixels
    context = stream.codec_context
    context.time_base = base
    if source.aspect:
        turned = (height, width) == (source.width, source.height) != (width, height)
        context.sample_aspect_ratio = 1 / source.aspect if turned else source.aspect
    # the matrix pictures were decoded with, so that colors come back as they were
    context.colorspace = (
        source.colorspace if source.colorspace in (_BT709, _UNSPECIFIED) else _BT601
    )
    context.color_range = 1  # limited
    return stream


def is_bt709(stream: Any) -> bool:
    """Return True if the color matrix of a stream is BT.709, else it is BT.601."""
    return int(stream.codec_context.colorspace) == _BT709


def encodable(shown: NDArray[np.uint8], stream: Any) -> Any:
    """uint8 (H,W,3) RGB or (H,W,4) RGBA -> a frame for the stream, of its size and colors."""
    import av
    from av.video.reformatter import Colorspace

    rows, columns = (max(0, stream.height - shown.shape[0]), max(0, stream.width - shown.shape[1]))
    if max(rows, columns) == 1:
        shown = np.pad(shown, ((0, rows), (0, columns), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(shown, "rgb24" if shown.shape[2] == 3 else "rgba").reformat(
        width=stream.width,  # other than the frame's where a file changes its size
        height=stream.height,
        format=stream.pix_fmt,
        dst_colorspace=Colorspace.ITU709 if is_bt709(stream) else Colorspace.ITU601,
    )
