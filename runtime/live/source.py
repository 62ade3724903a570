"""Live source (camera, microphone, stream or pipe): newest frame, last sound, reconnection.

One thread per input reads as fast as the input delivers and keeps only the newest frame. A slow model
therefore gets current frames, and memory does not grow.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from save_deploy.data.audio import Waveform
from save_deploy.data.film import sound_track
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.transforms import Frame
from save_deploy.data.video import Orientation, orientation_of, pixels
from save_deploy.errors import DataError
from save_deploy.runtime.live.clock import Clock
from save_deploy.runtime.live.place import EXPECTED, Place, places_of
from save_deploy.runtime.live.sound import Ears, Held, Resampled

STEREO_HZ = 48_000  # sample rate of the sound for an output file
_TIMEOUT_S = (10.0, 5.0)  # for opening an input, and for a read; then the input counts as lost
_WAITS_S = (0.25, 0.5, 1.0, 2.0, 4.0)  # between attempts to reopen a lost input; the last repeats
_LOOK_S = 0.1  # timeout for a frame, so that Ctrl-C is handled in between
_JOIN_S = 2.0  # a read that does not return ends with the program


@dataclass(frozen=True)
class LiveFrame:
    """A frame of a live source.

    picture: uint8 (H,W,3) RGB, upright.
    time_s: time in the session.
    captured: time.monotonic() at capture.
    skipped: frames that were replaced by newer ones since the last call.
    """

    picture: Frame
    time_s: float
    captured: float
    skipped: int


class LiveSource:
    """Context manager. frame() returns the newest frame; ears and held contain the sound."""

    def __init__(self, places: Sequence[Place], *, patience_s: float, hold_sound: bool) -> None:
        """patience_s: how long a lost input is retried. hold_sound: also keep sound for a file."""
        self.places, self.patience_s = places, patience_s
        self.ears, self.held = Ears(), Held() if hold_sound else None
        self.started = time.monotonic()
        self.has_sound = False
        self.losses = 0  # number of reconnections
        self.decoded = 0
        self.rate = 0.0  # frames per second stated by the source; 0 if unknown
        self.colorspace = 2  # FFmpeg's number of the color matrix; 2 if unknown
        self._changed = threading.Condition()
        self._newest: tuple[Any, float, float] | None = None
        self._skipped = 0
        self._turn: Orientation | None = None
        self._over = False
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(place, i == 0), daemon=True)
            for i, place in enumerate(places)
        ]

    def __enter__(self) -> Self:
        """Wait until every input was opened once. Raises DataError for one that cannot be opened."""
        self._opened = threading.Barrier(len(self.places) + 1)
        for thread in self._threads:
            thread.start()
        with contextlib.suppress(threading.BrokenBarrierError):
            self._opened.wait(sum(_TIMEOUT_S) + 1)
        if self._error is not None:
            self.__exit__()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def frame(self, timeout_s: float) -> LiveFrame | None:
        """Return the newest frame not returned before; None after timeout_s without one.

        Raises EOFError at the end of the source, and the error that ended an input's thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._over or self._error, timeout_s)
            if self._error is not None:
                raise self._error
            if self._newest is None:
                if self._over:
                    raise EOFError
                return None
            (frame, time_s, captured), self._newest = self._newest, None
            skipped, self._skipped = self._skipped, 0
        if self._turn is None:
            self._turn = orientation_of(frame)
        return LiveFrame(pixels(frame, self._turn), time_s, captured, skipped)

    # ---- one thread per input

    def _work(self, place: Place, has_pictures: bool) -> None:
        import av

        clock, alone = Clock(self.started), len(self.places) == 1
        first, lost_at, tries = True, 0.0, 0
        try:
            while not self._stop.is_set():
                try:
                    with _opened(place) as container:
                        streams = self._streams(container, place, has_pictures, alone)
                        if first:
                            self._opened.wait(sum(_TIMEOUT_S))
                        self.losses += not first and tries > 0
                        first, tries = False, 0
                        self._read(container, streams, clock, place)
                    if place.ends or self._stop.is_set():
                        break
                except (av.FFmpegError, OSError) as error:
                    if first:
                        raise DataError(
                            "live source cannot be opened",
                            got=f"{place.name}: {error}",
                            expected=EXPECTED,
                        ) from error
                    if place.ends:
                        break
                clock.forget()
                lost_at = time.monotonic() if tries == 0 else lost_at
                if time.monotonic() - lost_at > self.patience_s:
                    raise _gone(place, self.patience_s)
                self._stop.wait(_WAITS_S[min(tries, len(_WAITS_S) - 1)])
                tries += 1
        except BaseException as error:  # raised in the reader's thread
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._over, self._error = True, self._error or error
            self._changed.notify_all()
        self._opened.abort()

    def _streams(self, container: Any, place: Place, has_pictures: bool, alone: bool) -> list[Any]:
        streams = []
        if has_pictures:
            if not container.streams.video:
                raise DataError("no frames in the live source", got=place.name, expected=EXPECTED)
            video = container.streams.video[0]
            video.thread_type = "SLICE"  # frame threading would delay frames
            self.rate = float(video.average_rate or video.guessed_rate or 0)
            self.colorspace = int(video.codec_context.colorspace)
            streams.append(video)
        if not has_pictures or alone:
            audio = sound_track(container)
            if audio is None and not has_pictures:
                raise DataError(
                    "no sound in the microphone", got=place.name, expected="a microphone"
                )
            if audio is not None:
                self.has_sound = True
                streams.append(audio)
        return streams

    def _read(self, container: Any, streams: list[Any], clock: Clock, place: Place) -> None:
        import av

        hear, keep = Resampled(SAMPLE_RATE_HZ), Resampled(STEREO_HZ, stereo=True)
        for packet in container.demux(streams):
            if self._stop.is_set():
                return
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:  # damaged packet
                continue
            for frame in frames:
                if frame.time is None:
                    continue
                time_s, captured = clock(frame.time)
                if place.paced:
                    self._stop.wait(max(0.0, self.started + time_s - time.monotonic()))
                    captured = max(captured, self.started + time_s)
                if isinstance(frame, av.VideoFrame):
                    self._see(frame, time_s, captured)
                else:
                    self._hear(frame, time_s, hear, keep)

    def _see(self, frame: Any, time_s: float, captured: float) -> None:
        with self._changed:
            self.decoded += 1
            self._skipped += self._newest is not None
            self._newest = frame, time_s, captured
            self._changed.notify_all()

    def _hear(self, frame: Any, time_s: float, hear: Resampled, keep: Resampled) -> None:
        if self.held is not None:
            self.held.add(keep(frame), time_s)
        self.ears.add(hear(frame), time_s)


def watch(
    source: str, *, microphone: str | None = None, patience_s: float = 60.0
) -> Iterator[tuple[LiveFrame, Waveform]]:
    """Yield the newest frame and the second of sound before it, float32 (16000,), until the end.

    source, microphone: as for `save-run --live`.
    Raises DataError for a source that cannot be opened, or is lost for more than patience_s.
    """
    opened = LiveSource(places_of(source, microphone), patience_s=patience_s, hold_sound=False)
    with opened:
        while True:
            try:
                frame = opened.frame(_LOOK_S)
            except EOFError:
                return
            if frame is not None:
                yield frame, opened.ears.window(frame.time_s)[0]


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[Any]:
    import av

    options = dict(place.options)
    with av.open(place.url, format=place.format, options=options, timeout=_TIMEOUT_S) as container:
        yield container


def _gone(place: Place, patience_s: float) -> DataError:
    return DataError(
        "the live source is lost",
        got=f"{place.name}: nothing for {patience_s:g} s",
        expected="frames",
        hint="--patience SECONDS waits longer",
    )
