"""save-deploy masks: export the masks of a run over many videos for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def masks(
    run: Annotated[Path, typer.Argument(help="Folder OUT of a run over many videos (-o OUT).")],
    export: Annotated[
        str,
        typer.Option(
            "--export",
            help="coco (one JSON file for pycocotools), sav (SA-V JSON, one file per video) or png.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file for coco, else a folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing JSON file.")] = False,
) -> None:
    """Export the masks of a run over many videos to a common format."""
    from save_deploy.runtime.bulk.export import export_masks

    done = export_masks(run, export, out, force=force)
    missing = f", {done.missing} without masks left out" if done.missing else ""
    print(f"{out}: {done.frames} frames of {done.videos} videos{missing}")
