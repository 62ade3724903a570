"""save-deploy masks: what a run over many videos wrote, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def masks(
    run: Annotated[Path, typer.Argument(help="Folder of a run over many videos: save-run -o OUT.")],
    export: Annotated[
        str,
        typer.Option(
            "--export",
            help="coco (one JSON that pycocotools loads), sav (SA-V's JSON, one a video) or png.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file of coco, else a folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a JSON that exists.")] = False,
) -> None:
    """Export the masks of a run over many videos."""
    from save_deploy.runtime.bulk.export import export_masks

    done = export_masks(run, export, out, force=force)
    missing = f", {done.missing} without masks left out" if done.missing else ""
    print(f"{out}: {done.frames} frames of {done.videos} videos{missing}")
