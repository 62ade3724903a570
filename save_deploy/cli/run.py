"""Verbs that run a bundle on a video: run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import Backend, NoSelfTest, Threads


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder written by save-export.")],
    video: Annotated[Path, typer.Argument(help="mp4, mkv, webm, mov, avi: what PyAV reads.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Video to write (.mp4, .mov, .mkv, .webm): what sounds is marked, the sound kept.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder for one PNG per frame: white = sounding.", show_default=False),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Loudness per second, masked share per frame.", show_default=False
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Upper limit of frames per second.", show_default="the video's"),
    ] = None,
    start: Annotated[float, typer.Option(help="Seconds into the video to begin at.")] = 0.0,
    seconds: Annotated[
        float | None, typer.Option(help="Length of the section.", show_default="to the end")
    ] = None,
    color: Annotated[
        str, typer.Option(help='Of the marks: a name, or "#ff3caa".', show_default="pink")
    ] = "",
    silent: Annotated[bool, typer.Option("--silent", help="Accept a video without sound.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")] = False,
    backend: Backend = "auto",
    no_self_test: NoSelfTest = False,
    threads: Threads = None,
) -> None:
    """Mask what sounds in a video: overlay video, masks as PNG, a JSON record."""
    from save_deploy.progress import progress
    from save_deploy.runtime.pipeline import load
    from save_deploy.runtime.video import RunOptions, Section, VideoRun
    from save_deploy.runtime.video.overlay import colour_of

    prepared = VideoRun(
        RunOptions(
            video=video,
            out=out,
            masks=masks,
            record=record,
            section=Section(start, seconds, fps),
            colour=colour_of(color),
            silent=silent,
            force=force,
        )
    )
    self_test = False if no_self_test else None
    with (
        load(bundle, backend=backend, threads=threads, self_test=self_test) as pipeline,
        progress("frames", prepared.source.n_frames) as advance,
    ):
        head = {
            "bundle": str(bundle),
            "precision": pipeline.precision,
            "backend": pipeline.backend,
        }
        result = prepared(pipeline, head=head, on_frame=advance)
    for note in result.notes:
        print(f"note: {note}")
    written = ", ".join(str(path) for path in (out, masks, record) if path is not None)
    heard = f"{result.seconds} s heard"
    if result.silent_seconds:
        heard += f" ({result.silent_seconds} silent)"
    print(
        f"{written}: {result.frames} frames, {heard}, {result.mask_share:.1%} of the picture sounds"
    )
