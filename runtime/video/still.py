"""Mask one picture with a second of sound."""

from __future__ import annotations

import contextlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from save_deploy.data.audio import EXAMPLE_SECONDS, MIN_SECONDS, is_silent, second
from save_deploy.data.pictures import read_frame
from save_deploy.data.sound import read_sound
from save_deploy.data.transforms import check_mask_name, write_mask
from save_deploy.errors import DataError
from save_deploy.files import check_file_target, check_not_input, new_file
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.result import Result
from save_deploy.runtime.video.options import OutputOptions, Section
from save_deploy.runtime.video.overlay import color_of
from save_deploy.runtime.video.sinks import MaskedFrame, loudness_dbfs, mask_as_json
from save_deploy.runtime.video.source import TimedFrame
from save_deploy.runtime.video.targets import check_distinct
from save_deploy.runtime.video.window import Window, check_display

_WHAT = "the output"
_READ_S = 2.0  # resampling the end of the first second needs the samples after it


class StillRun:
    """One run. Create it before loading a model: the constructor reads and checks the inputs."""

    def __init__(
        self,
        picture: Path,
        sound: Path,
        outputs: OutputOptions,
        *,
        overlay: Path | None = None,
        cure: str = "add --silent",
    ) -> None:
        """outputs.out: PNG of the mask. overlay: PNG of the picture with the mask drawn. cure: hint on
        the option that accepts silence. Raises DataError for inputs, OutputError for targets."""
        self.outputs, self.overlay, self.color = outputs, overlay, color_of(outputs.color)
        if outputs.masks or outputs.matte or outputs.section != Section():
            raise DataError(
                "options of a video", got="a picture", expected="only -o, --json or --show"
            )
        if outputs.out is not None:
            check_mask_name(outputs.out)
        targets = (*outputs.files, *(() if overlay is None else (overlay,)))
        check_distinct(targets)
        for path in targets:
            check_not_input(path, picture, sound)
            check_file_target(path, force=outputs.force)
        if outputs.show:
            check_display()
        self.picture = read_frame(picture)
        shortest = MIN_SECONDS if outputs.silent else EXAMPLE_SECONDS
        self.waveform = second(read_sound(sound, min_seconds=shortest, seconds=_READ_S, hint=cure))
        if is_silent(self.waveform) and not outputs.silent:
            raise DataError(
                "sound is silent",
                got=f"no sound in the first second of {sound}; only that second is used",
                expected="a sound",
                hint=cure,
            )
        self.about = {"picture": str(picture), "sound": str(sound)}

    def __call__(self, pipeline: SavePipeline, *, head: dict[str, Any] | None = None) -> Result:
        """Mask the picture and write all outputs, or none. head: entries for the JSON record."""
        found, outputs = pipeline(self.picture, self.waveform), self.outputs
        with ExitStack() as files:
            if outputs.record is not None:
                record = new_file(outputs.record, what=_WHAT, replace=outputs.force)
                text = json.dumps(self._record(found, head or {}), indent=2)
                files.enter_context(record).write_text(text + "\n")
            if self.overlay is not None:
                from PIL import Image

                shown = Image.fromarray(found.overlay(self.picture, outputs.color))
                drawn = new_file(self.overlay, what=_WHAT, replace=outputs.force)
                shown.save(files.enter_context(drawn), format="PNG")
            if outputs.out is not None:
                write_mask(outputs.out, found, replace=outputs.force)
        if outputs.show:
            self._show(found)
        return found

    def _record(self, found: Result, head: dict[str, Any]) -> dict[str, Any]:
        whole = found.to_dict()
        about = {k: whole[k] for k in ("width", "height", "mask_share", "score", "box")}
        loudness = loudness_dbfs(self.waveform)
        masks = mask_as_json(found, self.outputs.record_masks)
        return {"run": {**self.about, **head}, "loudness_dbfs": loudness, **about, **masks}

    def _show(self, found: Result) -> None:
        """Show the mask until the window is closed."""
        import time

        with contextlib.closing(Window(self.about["picture"], self.color)) as window:
            window.add(MaskedFrame(TimedFrame(self.picture, 0, 0, 0.0), found, 0, self.waveform))
            while window.is_open():
                time.sleep(0.02)
