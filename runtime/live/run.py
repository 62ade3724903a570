"""Mask a live source: always the newest frame, with the second of sound before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform
from save_deploy.errors import DataError
from save_deploy.files import check_file_target, check_not_input, new_file
from save_deploy.progress import ended_by_interrupt
from save_deploy.runtime.live.options import LiveOptions
from save_deploy.runtime.live.place import places_of
from save_deploy.runtime.live.source import LiveFrame, LiveSource
from save_deploy.runtime.live.stats import LiveResult, Stats
from save_deploy.runtime.live.writer import TIME_BASE, LiveVideo
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.video.formats import FORMATS, find_encoder, format_of
from save_deploy.runtime.video.options import RunOptions
from save_deploy.runtime.video.overlay import color_of
from save_deploy.runtime.video.sinks import MaskedFrame, Sink
from save_deploy.runtime.video.source import TimedFrame
from save_deploy.runtime.video.window import Window, check_display

HEAR_STEP_S = 0.05  # interval at which the embedding of the last second is computed again
_WAIT_S = 0.05  # timeout for a frame, between checks whether to end
_WHAT = "the output"


class LiveRun:
    """One run. Create it before loading a model: the constructor checks source and options."""

    def __init__(self, options: RunOptions, live: LiveOptions) -> None:
        """Raise DataError for an invalid source or option, OutputError for the output file,
        BackendError without a video encoder."""
        self.options, self.live, self.color = options, live, color_of(options.color)
        if not (options.out or options.show):
            raise DataError(
                "no output given", expected="a file or a window", hint="add -o or --show"
            )
        section, files = options.section, {*options.files} - {options.out}
        if files or section.start_s or section.fps:
            raise DataError(
                "option not available for a live source",
                got="--masks, --matte, --json, --start or --fps",
                expected="-o, --show, --seconds",
            )
        if options.show:
            check_display()
        if options.out is not None:
            find_encoder(format_of(options.out, FORMATS).encoders)
            microphone = [Path(live.microphone)] if live.microphone else []
            check_not_input(options.out, options.video, *microphone)
            check_file_target(options.out, force=options.force)
        self.places = places_of(str(options.video), live.microphone)

    def __call__(
        self, pipeline: SavePipeline, *, on_mask: Callable[[str], None] = lambda _: None
    ) -> LiveResult:
        """Mask until the source ends, --seconds are over, the window is closed, or Ctrl-C.

        The output written until then remains. Raises DataError for a source that cannot be opened.
        """
        stats = Stats()
        source = LiveSource(
            self.places, patience_s=self.live.patience_s, hold_sound=self.options.out is not None
        )
        with ExitStack() as outputs, source:
            if not source.has_sound and not self.options.silent:
                raise DataError(
                    "no sound in the live source",
                    got=self.places[0].name,
                    expected="a source with sound",
                    hint="--microphone alsa:default, or --silent",
                )
            sinks, window = self._open(outputs, source)
            gone: DataError | None = None
            with ended_by_interrupt() as stopped:
                over = lambda: stopped() or (window is not None and not window.is_open())
                try:
                    for masked in self._masked(pipeline, source, stats, over):
                        for sink in sinks:
                            sink.add(masked)
                        on_mask(stats.now_text())
                except DataError as error:
                    gone = error  # raised after the output is complete
            if not stats.masks:
                raise gone or DataError(
                    "the source gave no frame", got=self.places[0].name, expected="at least one"
                )
            for sink in sinks:
                sink.finish()
            result = stats.result(
                has_sound=source.has_sound,
                source_frames_per_s=round(source.rate, 2),
                losses=source.losses,
            )
        if gone is not None:
            raise gone
        return result

    def _masked(
        self, pipeline: SavePipeline, source: LiveSource, stats: Stats, over: Callable[[], bool]
    ) -> Iterator[MaskedFrame]:
        hearing, last_s, end_s = _Hearing(pipeline, source), -1.0, self.options.section.end_s
        while not over():
            try:
                frame = source.frame(_WAIT_S)
            except EOFError:
                return
            if time.monotonic() - source.started >= end_s:
                return
            if frame is None or frame.time_s <= last_s or frame.time_s < 0:
                continue
            last_s = frame.time_s
            embedding, waveform, heard_s = hearing.at(frame.time_s)
            mask = pipeline.mask(frame.picture, embedding)
            apart = frame.time_s - heard_s if source.has_sound else None
            stats.add(frame.skipped, time.monotonic() - frame.captured, apart)
            yield MaskedFrame(_timed(frame), mask, int(frame.time_s), waveform)

    def _open(self, outputs: ExitStack, source: LiveSource) -> tuple[list[Sink], Window | None]:
        sinks, window, out = list[Sink](), None, self.options.out
        if out is not None:
            path = outputs.enter_context(new_file(out, what=_WHAT, replace=self.options.force))
            sinks.append(LiveVideo(path, source, self.color))
        if self.options.show:
            window = Window(self.places[0].name, self.color)
            sinks.append(window)
        for sink in sinks:
            outputs.callback(sink.close)
        return sinks, window


class _Hearing:
    """Embedding of the second before a frame, computed again every HEAR_STEP_S."""

    def __init__(self, pipeline: SavePipeline, source: LiveSource) -> None:
        self.pipeline, self.source = pipeline, source
        self._at_s = -np.inf
        self._kept: tuple[NDArray[np.float32], Waveform, float] | None = None

    def at(self, time_s: float) -> tuple[NDArray[np.float32], Waveform, float]:
        """Return the embedding (1,128), its waveform (16000,) and the end time of the waveform."""
        if self._kept is None or time_s - self._at_s >= HEAR_STEP_S:
            waveform, end_s = self.source.ears.window(time_s)
            self._kept, self._at_s = (self.pipeline.embed(waveform), waveform, end_s), time_s
        return self._kept


def _timed(frame: LiveFrame) -> TimedFrame:
    return TimedFrame(frame.picture, round(frame.time_s / TIME_BASE), 0, frame.time_s)
