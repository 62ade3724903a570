"""Mask one video of many into its mask file."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from save_deploy.errors import DataError
from save_deploy.files import new_file, new_folder
from save_deploy.progress import raise_if_interrupted
from save_deploy.runtime.bulk.masks import MaskFile
from save_deploy.runtime.lanes import Lanes
from save_deploy.runtime.video.masking import FilmMasks, Manner
from save_deploy.runtime.video.overlay import color_of
from save_deploy.runtime.video.sinks import MaskedFrame, MaskFolder, Sink
from save_deploy.runtime.video.source import VideoSource
from save_deploy.runtime.video.targets import masks_only
from save_deploy.runtime.video.writer import OverlayVideo

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
        self.frames, self.times = 0, dict[str, float]()

    def __call__(self, lanes: Lanes, target: Target, *, before_end: Callable[[], None]) -> None:
        """Mask the video and write its files.

        before_end: called when the masks are complete, before they are renamed to their target; if it
        raises, nothing is written.
        Raises DataError, ParityError, OutputError, Stopped and KeyboardInterrupt.
        """
        options = self.options
        manner = Manner(options.masks_at, options.resize, keep=options.form == "video")
        masks = FilmMasks(self.source, lanes, manner, self._check)
        with contextlib.ExitStack() as outputs:
            path = outputs.enter_context(new_file(target.path, what=_WHAT))
            rows = MaskFile(path, run=target.run, video=target.video, name=target.name)
            outputs.callback(rows.close)
            sinks = [rows, *self._sinks(outputs, target)]
            masks.to(sinks, self._count)
            for sink in sinks:
                sink.finish()
            before_end()
            raise_if_interrupted()
        self.times = dict(masks.clock.times)

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

    def _count(self, _: MaskedFrame) -> None:
        self.frames += 1

    def _check(self) -> None:
        raise_if_interrupted()
        if self.stop.is_set():
            raise Stopped
