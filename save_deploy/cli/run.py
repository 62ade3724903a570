"""save-run: mask what sounds in a video, or in many."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import typer

from save_deploy.cli.options import Placement
from save_deploy.cli.takes import takes
from save_deploy.errors import DataError
from save_deploy.options import KEY, option
from save_deploy.runtime.bulk.options import BulkOptions
from save_deploy.runtime.live.options import LiveOptions
from save_deploy.runtime.video.options import OutputOptions, RunOptions

_LISTED = 20  # failed videos that are printed
FAILED = 2  # exit code


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A bundle, where it runs, and the videos."""

    bundle: Path = option(help="Folder written by save-export.")
    video: str | None = option(
        default=None,
        help="mp4, mkv, webm, mov, avi: what PyAV reads. Or many: a folder, a pattern in quotes, a "
        "URL that fsspec opens, or none with --manifest. With --live a camera or an address.",
    )
    outputs: OutputOptions = field(default_factory=OutputOptions)
    bulk: BulkOptions = field(default_factory=BulkOptions)
    live: LiveOptions = field(default_factory=LiveOptions)
    placement: Placement = field(default_factory=Placement)


@takes(RunRequest)
def run(request: RunRequest) -> None:
    """Mask what sounds in a video: overlay video, masks as PNG, a JSON record. Many videos: one file of
    masks each (docs/scale.md)."""
    from save_deploy.runtime.bulk.videos import is_many

    video, bulk = request.video, request.bulk
    many = bulk.manifest or bulk.format or (video is not None and is_many(video))
    if many and not request.live.live:
        _run_many(request)
        return
    if video is None:
        raise DataError("which video?", got="none", expected="VIDEO, a folder, or --manifest FILE")
    if bulk != BulkOptions():
        plain = BulkOptions()
        given = [f for f in fields(bulk) if getattr(bulk, f.name) != getattr(plain, f.name)]
        raise DataError(
            "an option that has no effect here",
            got=", ".join(f.metadata[KEY].names[0] for f in given),
            expected="many videos, or --format beside it",
        )
    _run_one(request, Path(video))


def _run_one(request: RunRequest, video: Path) -> None:
    from save_deploy.files import check_not_of_bundle
    from save_deploy.progress import progress
    from save_deploy.runtime.video.run import VideoRun

    options = RunOptions(video=video, **vars(request.outputs))
    for path in (options.out, options.masks, options.record):
        if path is not None:
            check_not_of_bundle(path, request.bundle)
    if request.live.live:
        return _run_live(request, options)
    prepared = VideoRun(options)
    with (
        request.placement.load(request.bundle) as pipeline,
        progress("frames", prepared.source.n_frames) as advance,
    ):
        head = {
            "bundle": str(request.bundle),
            "precision": pipeline.precision,
            "backend": pipeline.backend,
        }
        result = prepared(pipeline, head=head, on_frame=advance)
    for note in result.notes:
        print(f"note: {note}")
    outputs = (options.out, options.masks, options.record)
    written = ", ".join(str(path) for path in outputs if path is not None)
    heard = f"{result.seconds} s heard"
    if result.silent_seconds:
        heard += f" ({result.silent_seconds} silent)"
    print(
        f"{written}: {result.frames} frames, {heard}, {result.mask_share:.1%} of the picture sounds"
    )


def _run_live(request: RunRequest, options: RunOptions) -> None:
    from save_deploy.progress import progress
    from save_deploy.runtime.live.run import LiveRun

    prepared = LiveRun(options, request.live)
    with request.placement.load(request.bundle) as pipeline, progress("masks", None) as advance:
        result = prepared(pipeline, on_mask=advance)
    for line in result.lines():
        print(line)
    if options.out is not None:
        print(f"{options.out}: {result.masks} frames")


def _run_many(request: RunRequest) -> None:
    from save_deploy.runtime.bulk.film import FilmOptions
    from save_deploy.runtime.bulk.run import BulkRun
    from save_deploy.runtime.bulk.worker import Task

    placement = request.placement
    prepared = BulkRun(request.video, request.bulk, request.outputs)
    task = Task(
        bundle=request.bundle.absolute(),
        out=prepared.place.root,
        film=FilmOptions(),
        backend=placement.backend,
        threads=placement.threads,
        self_test=None if placement.self_test else False,
        trust=placement.trust,
        threshold=placement.threshold,
    )
    result = prepared(task)
    before = f" ({result.before} before)" if result.before else ""
    print(f"{prepared.place.root}: {result.done} videos done{before}, {len(result.failed)} failed")
    if result.frames:
        rate = result.frames / max(1e-3, result.seconds)
        print(
            f"{result.frames} frames in {result.seconds:.1f} s, {rate:.1f} frames/s: {result.how}"
        )
        print(f"a frame's time, stages beside each other: {result.split}")
    for row in result.failed[:_LISTED]:
        print(f"failed: {row['id']}: {row['error']}")
    if result.failed:
        print(f"all of them: {prepared.place.failed}, which --manifest takes")
        raise typer.Exit(FAILED)
