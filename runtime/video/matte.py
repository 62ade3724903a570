"""Matte video for editors: the source's frames at their times, transparent outside the masks."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.film import url_of
from save_deploy.data.transforms import Frame, Mask
from save_deploy.runtime.video.formats import MATTES, find_matte_encoder, format_of
from save_deploy.runtime.video.sinks import MaskedFrame
from save_deploy.runtime.video.source import VideoSource
from save_deploy.runtime.video.writer import encodable, picture_stream

_OPAQUE = 255


class MatteVideo:
    """Sink for a matte at frame size, without sound. Alpha is 255 inside the mask and 0 outside.

    ProRes 4444 stores alpha exactly, VP9 within a few values.
    """

    def __init__(self, path: Path, source: VideoSource) -> None:
        import av

        self.source, self.form = source, format_of(path, MATTES)
        find_matte_encoder(self.form)
        self._container: Any = av.open(url_of(path), "w", format=self.form.muxer)
        self._stream: Any = None

    def add(self, masked: MaskedFrame) -> None:
        shown = with_alpha(masked.frame.picture, masked.mask)
        if self._stream is None:
            self._stream = picture_stream(
                self._container, self.source, self.form.encoder, masked.mask.shape[:2],
                base=self.source.time_base, pixels=self.form.pixels, options=self.form.options,
            )  # fmt: skip
        frame = encodable(shown, self._stream)
        frame.time_base, frame.pts = self.source.time_base, masked.frame.pts
        frame.duration = masked.frame.duration
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def close(self) -> None:
        with contextlib.suppress(
            Exception
        ):  # closing a broken file writes its end, and fails again
            self._container.close()


def with_alpha(picture: Frame, mask: Mask) -> NDArray[np.uint8]:
    """Return a picture uint8 (H,W,3) with a mask bool (H,W) as alpha: uint8 (H,W,4)."""
    return np.dstack([picture, mask.astype(np.uint8) * _OPAQUE])
