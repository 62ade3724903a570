"""Masks of a film's frames in order, for one film and for many: decode | mask | whatever comes next.

Decoding and resizing run in one thread, the models in as many as there are lanes, enlarging in one
more, and the reader of the masks in its own.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Frame, resize_frame
from save_deploy.data.video import pixels
from save_deploy.progress import raise_if_interrupted
from save_deploy.runtime.enlarge import mask_at
from save_deploy.runtime.lanes import Answer, Lanes
from save_deploy.runtime.pipeline import Listener
from save_deploy.runtime.result import logit_of
from save_deploy.runtime.video.ahead import ahead
from save_deploy.runtime.video.sinks import MaskedFrame, Sink
from save_deploy.runtime.video.source import TimedFrame, VideoSource

STAGES = ("decode", "resize", "model", "enlarge", "write")
_AHEAD = 4  # frames queued between two stages, plus at most one batch
T = TypeVar("T")


@dataclass(frozen=True)
class Manner:
    """How frames are masked.

    masks_at: size of the masks, frame or network.
    resize: how frames are resized to network size, exact or area.
    keep: hold every frame until its mask is written, for outputs that show it.
    """

    masks_at: str = "frame"
    resize: str = "exact"
    keep: bool = True


def split_of(times: Mapping[str, float], frames: int) -> str:
    """Return the time per frame by stage: `decode 3.1 ms | model 41.0 ms | ...`."""
    each = {stage: 1000 * times.get(stage, 0) / max(1, frames) for stage in STAGES}
    return " | ".join(f"{stage} {ms:.1f} ms" for stage, ms in each.items())


class Clock:
    """Seconds by stage. Stages run in parallel, so the sum exceeds the elapsed time."""

    def __init__(self) -> None:
        self.times: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.times[stage] += time.perf_counter() - began


@dataclass(frozen=True)
class _Group:
    """Frames that are masked in one call: small ones uint8 (F,S,S,3), and their seconds of sound."""

    frames: list[TimedFrame]
    sizes: list[tuple[int, int]]
    seconds: list[tuple[int, Waveform]]
    answer: Future[Answer]


class FilmMasks:
    """The masks of one film. clock: seconds by stage, each stage added by one thread."""

    def __init__(
        self,
        source: VideoSource,
        lanes: Lanes,
        manner: Manner = Manner(),
        check: Callable[[], None] = raise_if_interrupted,
    ) -> None:
        """check: called for every frame in two threads; what it raises ends the film."""
        self.source, self.lanes, self.manner, self.check = source, lanes, manner, check
        self.clock = Clock()

    def to(self, sinks: Iterable[Sink], each: Callable[[MaskedFrame], None]) -> None:
        """Mask every frame and add it to all sinks. each: called after that.

        Raises DataError for a film with too many corrupt packets, and the errors of Lanes.submit.
        No thread of this film runs afterwards.
        """
        sinks = list(sinks)
        with (
            ahead(self._read(), _AHEAD) as read,
            ahead(self._masked(read), _AHEAD) as masks,
        ):
            for frame in masks:
                with self.clock("write"):
                    for sink in sinks:
                        sink.add(frame)
                self.check()
                each(frame)

    def _read(self) -> Generator[tuple[TimedFrame, tuple[int, int], Frame], None, None]:
        """Yield frames, their sizes (H,W), and pictures uint8 (S,S,3)."""
        clock, frames = self.clock, self.source.frames()
        try:
            while True:
                with clock("decode"):
                    frame = next(frames, None)
                if frame is None:
                    return
                small, size = self._small(frame), frame.size
                yield (frame if self.manner.keep else replace(frame, shown=None)), size, small
                self.check()
        finally:
            frames.close()

    def _small(self, frame: TimedFrame) -> Frame:
        side, clock = self.lanes.first.config.res, self.clock
        if self.manner.resize == "exact":
            with clock("decode"):
                picture = frame.picture
            with clock("resize"):
                return resize_frame(picture, side)
        with clock("resize"):
            small = frame.shown.reformat(side, side, "rgb24", interpolation="AREA")
            return pixels(small, frame.turn)

    def _masked(
        self, read: Iterable[tuple[TimedFrame, tuple[int, int], Frame]]
    ) -> Generator[MaskedFrame, None, None]:
        """Yield the frames with their masks. At most one call more than there are lanes waits."""
        source, lanes = self.source, self.lanes
        sound = source.sound_seconds() if source.has_sound else iter(())
        listener, waiting = Listener(lanes.first, sound), deque[_Group]()
        try:
            for items in in_groups(read, max(lanes.first.batches)):
                waiting.append(self._submitted(items, listener))
                if len(waiting) > lanes.n:
                    yield from self._finished(waiting.popleft())
            while waiting:
                yield from self._finished(waiting.popleft())
        finally:
            for group in waiting:
                group.answer.cancel()
            wait([group.answer for group in waiting])

    def _submitted(
        self, items: list[tuple[TimedFrame, tuple[int, int], Frame]], listener: Listener
    ) -> _Group:
        frames, sizes, small = map(list, zip(*items, strict=True))
        embeddings, seconds = [], []
        for frame in frames:
            embeddings.append(listener.hear(frame.time_s))
            seconds.append((listener.second, listener.waveform))
        answer = self.lanes.submit(np.stack(small), np.concatenate(embeddings))
        return _Group(frames, sizes, seconds, answer)

    def _finished(self, group: _Group) -> Iterator[MaskedFrame]:
        logits, took = group.answer.result()
        self.clock.times["model"] += took
        for frame, size, second, one in zip(
            group.frames, group.sizes, group.seconds, logits, strict=True
        ):
            with self.clock("enlarge"):
                mask = self._mask(one, size)
            yield MaskedFrame(frame, mask, *second)

    def _mask(self, logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
        limit = logit_of(self.lanes.first.threshold)
        return logits > limit if self.manner.masks_at == "network" else mask_at(logits, size, limit)


def in_groups(items: Iterable[T], n: int) -> Iterator[list[T]]:
    """Yield lists of n successive items; the last one may be shorter."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if len(group) == n:
            yield group
            group = []
    if group:
        yield group
