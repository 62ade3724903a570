"""save-deploy mask: save-run with a picture and a sound, under its older name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import Bundle, Placement
from save_deploy.cli.run import mask_still
from save_deploy.cli.takes import takes
from save_deploy.runtime.video.options import OutputOptions


@takes(Placement)
def mask(
    placement: Placement,
    bundle: Bundle,
    frame: Annotated[Path, typer.Argument(help="PNG or JPEG.")],
    sound: Annotated[Path, typer.Argument(help="Sound or video file; its first second is used.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write: white = sounding.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    any_sound: Annotated[
        bool, typer.Option("--any-sound", help="Accept silence and sound shorter than a second.")
    ] = False,
) -> None:
    """Mask what sounds in one picture: save-run BUNDLE FRAME SOUND -o OUT."""
    from save_deploy.runtime.video.still import StillRun

    outputs = OutputOptions(out=out, force=force, silent=any_sound)
    prepared = StillRun(frame, sound, outputs, cure="add --any-sound")
    mask_still(prepared, bundle, placement)
