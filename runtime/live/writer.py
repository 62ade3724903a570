"""Output of a live run: a video with sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from save_deploy.data.film_sound import GAP_S
from save_deploy.runtime.live.sound import Held, Samples
from save_deploy.runtime.live.source import STEREO_HZ, LiveSource
from save_deploy.runtime.pictures import Color
from save_deploy.runtime.video.options import Section
from save_deploy.runtime.video.writer import OverlayVideo

TIME_BASE = Fraction(1, 90_000)
_USUAL_RATE = 30  # for sources with unknown rate


class LiveVideo(OverlayVideo):
    """Overlay video of a live source, whose sound arrives while the video is written."""

    def __init__(self, path: Path, source: LiveSource, color: Color) -> None:
        shape: Any = SimpleNamespace(
            time_base=TIME_BASE,
            rate=Fraction(source.rate or _USUAL_RATE).limit_denominator(1001),
            section=Section(),
            aspect=None,
            colorspace=source.colorspace,
        )
        super().__init__(path, shape, sound=False, color=color)
        self._held = source.held if source.has_sound else None

    def _start(self, size: tuple[int, int]) -> None:
        super()._start(size)
        if self._held is not None:
            track: Any = _LiveTrack(self._container, self.form.sound_encoder, self._held)
            self._sound = track


@dataclass
class _LiveTrack:
    """Counterpart of SoundTrack for live sound: packets of the sound received so far."""

    container: Any
    encoder: str
    held: Held
    copied: bool = True  # suppresses the note on encoding

    def __post_init__(self) -> None:
        self._stream = self.container.add_stream(self.encoder, rate=STEREO_HZ, layout="stereo")
        self._end: int | None = None

    def until(self, time_s: float) -> Iterator[Any]:
        for at_s, samples in self.held.until(time_s):
            yield from self._encoded(round(at_s * STEREO_HZ), samples)
        if time_s == float("inf"):
            yield from self._stream.encode(None)

    def close(self) -> None: ...

    def _encoded(self, at: int, samples: Samples) -> Iterator[Any]:
        """Yield packets of contiguous samples despite rounded times; overlaps are dropped."""
        import av

        if self._end is not None and abs(at - self._end) <= GAP_S * STEREO_HZ:
            at = self._end
        samples = samples[max(0, (self._end or 0) - at) :]
        at = max(at, self._end or 0)
        if not samples.size:
            return
        self._end = at + len(samples)
        packed = np.ascontiguousarray(samples, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, "flt", "stereo")
        frame.rate, frame.pts, frame.time_base = STEREO_HZ, at, Fraction(1, STEREO_HZ)
        yield from self._stream.encode(frame)
