"""Verbs that use a bundle: mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import Bundle, Placement
from save_deploy.cli.takes import takes
from save_deploy.errors import DataError


@takes(Placement)
def mask(
    placement: Placement,
    bundle: Bundle,
    frame: Annotated[Path, typer.Argument(help="PNG or JPEG.")],
    sound: Annotated[Path, typer.Argument(help="Sound file or film; its first second is heard.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write: white = sounding.")],
    any_sound: Annotated[
        bool, typer.Option("--any-sound", help="Accept silence and less than a second.")
    ] = False,
) -> None:
    """Mask what sounds in one picture."""
    from save_deploy.data.audio import (
        EXAMPLE_SECONDS,
        MIN_SECONDS,
        is_silent,
        second,
    )
    from save_deploy.data.sound import read_sound
    from save_deploy.data.transforms import check_mask_name, read_frame, write_mask
    from save_deploy.files import check_not_input, check_not_of_bundle

    check_mask_name(out)
    check_not_input(out, frame, sound)
    check_not_of_bundle(out, bundle)
    picture = read_frame(frame)
    cure = "add --any-sound"
    shortest = MIN_SECONDS if any_sound else EXAMPLE_SECONDS
    # a second more than is heard: what follows sounds in the resampled end of the first
    heard = second(read_sound(sound, min_seconds=shortest, seconds=2.0, hint=cure))
    if is_silent(heard) and not any_sound:
        raise DataError(
            "sound is silent",
            got=f"silence in the first second of {sound}, which is what is heard",
            expected="something to hear",
            hint=cure,
        )
    with placement.load(bundle) as pipeline:
        found = pipeline(picture, heard)
    write_mask(out, found)
    print(f"{out}: {found.mean():.1%} of the picture sounds")
