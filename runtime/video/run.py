"""Mask one video. Memory does not grow with its length."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from save_deploy.data.audio import is_silent
from save_deploy.errors import DataError, OutputError
from save_deploy.files import new_file, new_folder
from save_deploy.progress import raise_if_interrupted
from save_deploy.runtime.lanes import Lanes, as_lanes
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.video.formats import (
    FORMATS,
    MATTES,
    find_encoder,
    find_matte_encoder,
    format_of,
)
from save_deploy.runtime.video.masking import FilmMasks, Manner
from save_deploy.runtime.video.matte import MatteVideo
from save_deploy.runtime.video.options import RunOptions
from save_deploy.runtime.video.overlay import color_of
from save_deploy.runtime.video.sinks import MaskedFrame, MaskFolder, Record, Sink
from save_deploy.runtime.video.source import VideoSource
from save_deploy.runtime.video.targets import (
    check_distinct,
    check_masks,
    check_target,
    masks_only,
    one_at_a_time,
)
from save_deploy.runtime.video.window import Window, check_display
from save_deploy.runtime.video.writer import OverlayVideo

_WHAT = "the output"


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    frames: number of masked frames.
    mask_share: mean share of sounding pixels, 0 to 1.
    seconds, silent_seconds: number of seconds of sound used, and of those that are silent.
    notes: remarks on the file for the user.
    """

    frames: int
    mask_share: float
    seconds: int
    silent_seconds: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class VideoRun:
    """One run. Create it before loading a model: the constructor checks inputs and outputs."""

    def __init__(self, options: RunOptions) -> None:
        """Raise DataError for files that cannot be used, BackendError without a video encoder."""
        self.options, self.color = options, color_of(options.color)
        self.times: dict[str, float] = {}  # seconds by stage, after a call
        if not (options.files or options.show):
            raise DataError(
                "nothing to write", expected="one of them or more",
                hint="add -o, --masks, --matte, --json or --show",
            )  # fmt: skip
        self.source = VideoSource(options.video, options.section)
        if not self.source.has_sound and not options.silent:
            raise DataError(
                "no sound in the video",
                got=str(options.video),
                expected="an audio stream, which the model needs",
                hint="add --silent to mask with silence",
            )
        check_distinct(self._targets())
        self._check_targets()
        if options.out is not None:
            find_encoder(format_of(options.out, FORMATS).encoders)
        if options.matte is not None:
            find_matte_encoder(format_of(options.matte, MATTES))
        if options.show:
            check_display()

    def __call__(
        self,
        models: SavePipeline | Lanes,
        *,
        head: dict[str, Any] | None = None,
        on_frame: Callable[[], None] = lambda: None,
    ) -> RunResult:
        """Mask the video and write the outputs.

        models: they stay open.
        head: entries about the run for the JSON record.
        Raises DataError for a video with too many corrupt packets, OutputError for outputs that
        cannot be written. After an error or Ctrl-C no output remains.
        """
        totals = _Totals()

        def each(frame: MaskedFrame) -> None:
            totals.add(frame)
            on_frame()

        with (
            _writing(), as_lanes(models) as lanes, ExitStack() as turn, ExitStack() as outputs
        ):  # fmt: skip
            sinks, shows = self._open(outputs, head or {}), self.options
            keep = bool(shows.out or shows.matte or shows.show)
            masks = FilmMasks(self.source, lanes, Manner(keep=keep))
            masks.to(sinks, each)
            self.times = masks.clock.times
            result = totals.result(self._notes(sinks, totals))
            for sink in sinks:
                if isinstance(sink, Record):
                    sink.total = result.to_dict()
                sink.finish()
            raise_if_interrupted()
            turn.enter_context(one_at_a_time(self._targets()))  # until all outputs are renamed
            self._check_targets()  # again: another run may have written there meanwhile
        return result

    def _targets(self) -> list[Path]:
        return list(self.options.files)

    def _check_targets(self) -> None:
        options = self.options
        for path in (options.out, options.matte, options.record):
            if path is not None:
                check_target(path, source=options.video, force=options.force)
        if options.masks is not None:
            check_masks(options.masks, force=options.force)

    def _open(self, outputs: ExitStack, head: dict[str, Any]) -> list[Sink]:
        """Open the sinks on temporary paths.

        Leaving `outputs` closes the sinks, then renames the paths to their targets, or removes them
        after an error.
        """
        options, source, sinks = self.options, self.source, list[Sink]()

        def keep(sink: Sink) -> None:
            outputs.callback(sink.close)
            sinks.append(sink)

        if options.out is not None:
            path = outputs.enter_context(new_file(options.out, what=_WHAT, replace=options.force))
            keep(OverlayVideo(path, source, sound=source.has_sound, color=self.color))
        if options.matte is not None:
            path = outputs.enter_context(new_file(options.matte, what=_WHAT, replace=options.force))
            keep(MatteVideo(path, source))
        if options.masks is not None:
            is_ours = masks_only if options.force else None
            made = new_folder(options.masks, what=_WHAT, is_ours=is_ours)
            keep(MaskFolder(outputs.enter_context(made)))
        if options.record is not None:
            path = outputs.enter_context(
                new_file(options.record, what=_WHAT, replace=options.force)
            )
            section = options.section
            about = {"video": str(options.video), "start_s": section.start_s, **head}
            keep(Record(path, about, options.record_masks))
        if options.show:
            keep(Window(str(options.video), self.color))
        return sinks

    def _notes(self, sinks: list[Sink], totals: _Totals) -> Iterator[str]:
        source, end_s = self.source, totals.end_s
        if not source.has_sound:
            yield "the file has no sound: masks are computed with silence"
        elif source.sound_s < end_s - 1:
            yield f"the sound ends after {source.sound_s:.1f} s: later frames use silence"
        whole_s = min((source.length_s or 0) - source.section.start_s, source.section.end_s)
        last_s = 1 / min(float(source.rate), source.section.most_fps or float(source.rate))
        ended = end_s + last_s < whole_s - 1 and not source.section.keyframes
        if source.damage["video"].broken_off or ended:
            yield f"the pictures end after {end_s:.1f} of {whole_s:.1f} s"
        for track in source.damage.values():
            if track.bad:
                yield f"{track.what}: {track.bad} of {track.read} packets are corrupt and skipped"
        if source.out_of_order:
            n = source.out_of_order
            yield f"the file's time stamps go back: {n} frames are skipped"
        for sink in sinks:
            if isinstance(sink, OverlayVideo):
                yield from sink.notes()


@dataclass
class _Totals:
    """Sums over the frames of a run."""

    frames: int = 0
    share: float = 0.0
    seconds: int = 0
    silent: int = 0
    last: int = -1
    end_s: float = 0.0

    def add(self, masked: MaskedFrame) -> None:
        self.frames, self.share = self.frames + 1, self.share + masked.share
        self.end_s = masked.frame.time_s
        if masked.second != self.last:
            self.last, self.seconds = masked.second, self.seconds + 1
            self.silent += not masked.waveform.size or is_silent(masked.waveform)

    def result(self, notes: Iterator[str]) -> RunResult:
        share = self.share / max(1, self.frames)
        return RunResult(self.frames, share, self.seconds, self.silent, tuple(notes))


@contextmanager
def _writing() -> Iterator[None]:
    """Convert errors of the system and of FFmpeg about output files to OutputError."""
    import av

    try:
        yield
    except (OSError, av.FFmpegError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OutputError(
            f"{_WHAT} cannot be written",
            got=str(error),
            expected="room for it" if full else "a folder that can be written",
            hint="free some space; no partial output remains" if full else "",
        ) from error
