"""Mask one video into its mask file, in three pipelined stages: decode | model | write."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Frame, Mask, resize_frame
from save_deploy.data.video import pixels
from save_deploy.errors import DataError
from save_deploy.files import new_file, new_folder
from save_deploy.progress import raise_if_interrupted
from save_deploy.runtime.bulk.masks import MaskFile, Row
from save_deploy.runtime.pipeline import Listener, SavePipeline, at_frame_size
from save_deploy.runtime.result import logit_of
from save_deploy.runtime.video.ahead import ahead
from save_deploy.runtime.video.masking import finite_logits, in_groups
from save_deploy.runtime.video.overlay import color_of
from save_deploy.runtime.video.sinks import MaskedFrame, MaskFolder, Sink
from save_deploy.runtime.video.source import Shown, TimedFrame, VideoSource
from save_deploy.runtime.video.targets import masks_only
from save_deploy.runtime.video.writer import OverlayVideo

STAGES = ("decode", "resize", "model", "enlarge", "encode", "write")
_AHEAD = 8  # frames queued between two stages, plus at most one batch
_WHAT = "the masks"


class Stopped(Exception):
    """The run ends because of an error in another video of this process."""


@dataclass(frozen=True)
class FilmOptions:
    """Options per video. form: rle, png or video; the others as in BulkOptions and RunOptions."""

    form: str = "rle"
    masks_at: str = "frame"
    resize: str = "exact"
    color: str = ""
    silent: bool = False


@dataclass(frozen=True)
class Target:
    """Path of the mask file and the entries of its footer: run hash, video hash, video id."""

    path: Path
    run: str
    video: str
    name: str


@dataclass(frozen=True)
class _Ready:
    """A prepared frame.

    image: uint8 (S,S,3) at network size.
    size: displayed size (H,W).
    shown: the frame with its times; its picture is at full size only if an overlay is drawn.
    """

    image: Frame
    size: tuple[int, int]
    shown: TimedFrame


class Clock:
    """Seconds by stage. Stages run in parallel, so the sum exceeds the elapsed time."""

    def __init__(self) -> None:
        self.times: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.times[stage] += time.perf_counter() - began


class Film:
    """One video. The constructor checks it; the call masks it."""

    def __init__(self, source: VideoSource, options: FilmOptions, stop: threading.Event) -> None:
        """stop: event that ends the whole run. Raises DataError for a video without sound."""
        self.source, self.options, self.stop = source, options, stop
        if not source.has_sound and not options.silent:
            raise DataError(
                "no sound in the video",
                got=source.path.name,
                expected="an audio stream, which the model needs",
                hint="add --silent to mask with silence",
            )
        self.clock, self.frames, self.limit = Clock(), 0, 0.0

    def __call__(
        self, pipeline: SavePipeline, target: Target, *, before_end: Callable[[], None]
    ) -> None:
        """Mask the video and write its files.

        before_end: called when the masks are complete, before they are renamed to their target; if it
        raises, nothing is written.
        Raises DataError, ParityError, OutputError, Stopped and KeyboardInterrupt.
        """
        sound = self.source.sound_seconds() if self.source.has_sound else iter(())
        listener, self.limit = Listener(pipeline, sound), logit_of(pipeline.threshold)
        with contextlib.ExitStack() as outputs:
            path = outputs.enter_context(new_file(target.path, what=_WHAT))
            sinks = self._sinks(outputs, target)
            rows = outputs.enter_context(
                MaskFile(path, run=target.run, video=target.video, name=target.name)
            )
            held = max(1, _AHEAD // pipeline.batch)
            with ahead(self._read(pipeline.config.res), _AHEAD) as read:
                groups = self._computed(pipeline, listener, in_groups(read, pipeline.batch))
                with ahead(groups, held) as computed:
                    for group in computed:
                        for ready, logits, second, waveform in group:
                            self._write(ready, logits, second, waveform, rows, sinks)
                        self._check()
            for sink in sinks:
                sink.finish()
            before_end()
            raise_if_interrupted()

    def _sinks(self, outputs: contextlib.ExitStack, target: Target) -> list[Sink]:
        """Open the additional outputs. The mask file is renamed last: it marks the video as done."""
        sink: Sink
        if self.options.form == "png":
            made = new_folder(target.path.with_suffix(""), what=_WHAT, is_ours=masks_only)
            sink = MaskFolder(outputs.enter_context(made))
        elif self.options.form == "video":
            beside = target.path.with_name(f"{target.name}.mp4")
            path = outputs.enter_context(new_file(beside, what=_WHAT))
            color = color_of(self.options.color)
            sink = OverlayVideo(path, self.source, sound=self.source.has_sound, color=color)
        else:
            return []
        outputs.callback(sink.close)
        return [sink]

    def _read(self, side: int) -> Generator[_Ready, None, None]:
        clock, frames = self.clock, self.source.shown()
        try:
            while True:
                with clock("decode"):
                    shown = next(frames, None)
                if shown is None:
                    return
                yield self._ready(shown, side)
                self._check()
        finally:
            frames.close()

    def _ready(self, shown: Shown, side: int) -> _Ready:
        clock, picture = self.clock, None
        drawn = self.options.form == "video"
        if drawn or self.options.resize == "exact":
            with clock("decode"):
                picture = pixels(shown.frame, shown.turn)
        with clock("resize"):
            if self.options.resize == "area":
                small = shown.frame.reformat(side, side, "rgb24", interpolation="AREA")
                image = pixels(small, shown.turn)
            else:
                assert picture is not None
                image = resize_frame(picture, side)
        size = (shown.frame.height, shown.frame.width)
        size = size[::-1] if shown.turn.transposed else size
        kept = picture if drawn and picture is not None else image
        return _Ready(image, size, TimedFrame(kept, shown.pts, shown.duration, shown.time_s))

    def _computed(
        self, pipeline: SavePipeline, listener: Listener, groups: Iterable[list[_Ready]]
    ) -> Generator[list[tuple[_Ready, NDArray[np.float32], int, Waveform]], None, None]:
        for group in groups:
            with self.clock("model"):
                embeddings, seconds = [], []
                for ready in group:
                    embeddings.append(listener.hear(ready.shown.time_s))
                    seconds.append((listener.second, listener.waveform))
                images = np.stack([ready.image for ready in group])
                logits = finite_logits(pipeline, images, np.concatenate(embeddings))
            yield [
                (ready, one, second, waveform)
                for ready, one, (second, waveform) in zip(group, logits, seconds, strict=True)
            ]

    def _write(
        self, ready: _Ready, logits: NDArray[np.float32], second: int, waveform: Waveform,
        rows: MaskFile, sinks: list[Sink],
    ) -> None:  # fmt: skip
        with self.clock("enlarge"):
            network = self.options.masks_at == "network"
            mask = logits > self.limit if network else mask_at(logits, ready.size, self.limit)
        with self.clock("encode"):
            row = Row.of(round(ready.shown.time_s, 6), second, mask)
        with self.clock("write"):
            rows.add(row)
            for sink in sinks:
                sink.add(MaskedFrame(ready.shown, mask, second, waveform))
        self.frames += 1

    def _check(self) -> None:
        raise_if_interrupted()
        if self.stop.is_set():
            raise Stopped


def mask_at(logits: NDArray[np.float32], size: tuple[int, int], limit: float = 0.0) -> Mask:
    """Return the mask bool (H,W) of logits (S,S): True above the limit, as in SavePipeline.

    If no logit is above 0, no interpolated one is, so the resize is skipped.
    """
    if limit == 0 and not (logits > 0).any():
        return np.zeros(size, bool)
    return at_frame_size(logits, size) > limit
