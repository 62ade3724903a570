"""Sound track of an overlay video: the source's packets copied, or encoded again."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from save_deploy.data.film import Damage, decoded, opened, packets_of, seek, sound_track, start_of
from save_deploy.data.film_sound import GAP_S, mono_of
from save_deploy.runtime.video.formats import Format
from save_deploy.runtime.video.source import VideoSource

if TYPE_CHECKING:
    from av.container import OutputContainer

_LAYOUTS = {1: "mono", 6: "5.1"}  # channels -> layout that all encoders here accept; else stereo
_MOST_MIXED = 8  # channels; FFmpeg mixes only some larger layouts to stereo, so they become mono
_RATES = (44_100, 48_000)
_OPUS_RATE = 48_000


class SoundTrack:
    """Reads the source's sound through a third handle and returns packets by their time."""

    def __init__(self, source: VideoSource, container: OutputContainer, form: Format) -> None:
        self.source = source
        self.copied = source.sound_codec in form.copied
        with opened(source.path) as template:
            given: Any = sound_track(template)
            if self.copied:
                self._stream: Any = container.add_stream_from_template(given)
            else:
                n = given.layout.nb_channels
                layout = "mono" if n > _MOST_MIXED else _LAYOUTS.get(n, "stereo")
                rate = given.rate if given.rate in _RATES else _RATES[1]
                if form.sound_encoder == "libopus":
                    rate = _OPUS_RATE
                self._stream = container.add_stream(form.sound_encoder, rate=rate, layout=layout)
        self._packets: Any = self._copied() if self.copied else self._encoded()
        self._next: Any = None

    def until(self, time_s: float) -> Iterator[Any]:
        """Yield the packets up to a time of the section, ready to be muxed."""
        while True:
            self._next = self._next or next(self._packets, None)
            if self._next is None or self._next.pts * self._next.time_base > time_s:
                return
            packet, self._next = self._next, None
            packet.stream = self._stream
            yield packet

    def close(self) -> None:
        self._packets.close()

    def _copied(self) -> Iterator[Any]:
        section, last, damage = self.source.section, None, Damage("sound")
        with opened(self.source.path) as container:
            begin = start_of(container) + Fraction(section.start_s)
            seek(container, section.start_s)
            for packet in packets_of(container, sound_track(container), damage):
                if packet.pts is None or packet.dts is None:
                    continue
                shift = round(begin / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                time_s = packet.pts * packet.time_base
                if (section.start_s and time_s < 0) or (last is not None and packet.dts <= last):
                    continue
                if time_s >= section.end_s:
                    return
                last = packet.dts
                yield packet

    def _encoded(self) -> Iterator[Any]:
        """Yield encoded packets. Frames are contiguous despite rounded times; only gaps stay."""
        import av

        section, encoder, ends_at = self.source.section, self._stream, None
        packed = av.AudioResampler(format="flt")
        with opened(self.source.path) as container:
            begin_s = float(start_of(container)) + section.start_s
            seek(container, section.start_s)
            for frame in decoded(container, sound_track(container), Damage("sound")):
                given_s = 0.0 if frame.time is None else frame.time - begin_s
                at = round(given_s * frame.rate)
                if frame.layout.nb_channels > _MOST_MIXED:
                    frame = as_mono(frame, packed)
                if ends_at is not None and at <= ends_at + GAP_S * frame.rate:
                    at = ends_at
                if at >= section.end_s * frame.rate:
                    break
                ends_at = at + frame.samples
                if at >= 0:
                    frame.pts, frame.time_base = at, Fraction(1, frame.rate)
                    yield from encoder.encode(frame)
        yield from encoder.encode(None)


def as_mono(frame: Any, packed: Any) -> Any:
    """Return an audio frame mixed to mono, at the same rate. packed: a resampler to format flt."""
    import av

    samples = np.concatenate([mono_of(part) for part in packed.resample(frame)])
    mono = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
    mono.rate = frame.rate
    return mono
