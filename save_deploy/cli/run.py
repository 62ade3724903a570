"""save-run: mask what sounds in a video, in a picture with a sound, or in many videos."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from save_deploy.cli.options import Placement
from save_deploy.cli.takes import takes
from save_deploy.errors import DataError
from save_deploy.options import KEY, option
from save_deploy.runtime.bulk.options import BulkOptions
from save_deploy.runtime.live.options import LiveOptions
from save_deploy.runtime.video.options import OutputOptions, RunOptions

if TYPE_CHECKING:
    from save_deploy.runtime.pipeline import SavePipeline
    from save_deploy.runtime.video.still import StillRun

_LISTED = 20  # failed videos that are printed
FAILED = 2  # exit code


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A bundle, where it runs, and what is masked."""

    bundle: Path = option(help="Folder written by save-export.")
    sources: tuple[str, ...] = option(
        default=(),
        help="A video, a picture and its sound, a folder, a pattern in quotes, several videos, a URL, "
        "or - for standard input. With --live a camera or an address.",
    )
    outputs: OutputOptions = field(default_factory=OutputOptions)
    bulk: BulkOptions = field(default_factory=BulkOptions)
    live: LiveOptions = field(default_factory=LiveOptions)
    placement: Placement = field(default_factory=Placement)


@takes(RunRequest)
def run(request: RunRequest) -> None:
    """Mask what sounds: a video with the marks drawn in, masks as PNG, a matte for editors, a JSON
    record. Without -o and the others into runs/NAME. Many videos: one file of masks each."""
    from save_deploy.runtime.sources import Kind, kind_of

    outputs, bulk = request.outputs, request.bulk
    if request.live.live:
        return _run_live(request, _one(request))
    if bulk.manifest or bulk.format:
        return _run_many(request)
    into_folder = outputs.out is not None and not outputs.out.suffix
    kind = kind_of(request.sources, folder=into_folder)
    if kind is Kind.MANY:
        return _run_many(request)
    if kind is Kind.LIVE:
        raise DataError(
            "a source that goes on while it is masked", got=request.sources[0], expected="--live",
            hint=f"save-run {request.bundle} {request.sources[0]} --live --show",
        )  # fmt: skip
    if bulk != BulkOptions():
        plain = BulkOptions()
        given = [f for f in fields(bulk) if getattr(bulk, f.name) != getattr(plain, f.name)]
        raise DataError(
            "an option that has no effect here",
            got=", ".join(f.metadata[KEY].names[0] for f in given),
            expected="many videos, or --format as well",
        )
    if kind is Kind.STILL:
        _run_still(request)
    else:
        _run_film(request)


def _one(request: RunRequest) -> str:
    if len(request.sources) != 1:
        raise DataError("which live source?", got=str(len(request.sources)), expected="one SOURCE")
    return request.sources[0]


def _run_film(request: RunRequest) -> None:
    from save_deploy.progress import progress
    from save_deploy.runtime.sources import local_film, name_of, run_folder
    from save_deploy.runtime.video.masking import split_of
    from save_deploy.runtime.video.run import VideoRun

    (source,) = request.sources
    with ExitStack() as stack:
        film, outputs = stack.enter_context(local_film(source)), request.outputs
        if not (outputs.files or outputs.show):
            folder = stack.enter_context(run_folder(name_of(source)))
            out, record = folder / "overlay.mp4", folder / "record.json"
            outputs = replace(outputs, out=out, record=record)
        _check_not_of_bundle(outputs, request.bundle)
        prepared = VideoRun(RunOptions(video=film, **vars(outputs)))
        n_frames = prepared.source.n_frames
        with (
            request.placement.load_lanes(request.bundle, frames=n_frames) as lanes,
            progress("frames", n_frames) as advance,
        ):
            pipeline, began = lanes.first, time.monotonic()
            head = {"video": source, **_head(request.bundle, pipeline)}
            result = prepared(lanes, head=head, on_frame=advance)
            rate = result.frames / max(1e-3, time.monotonic() - began)
    for note in result.notes:
        print(f"note: {note}")
    heard = f"{result.seconds} s heard"
    if result.silent_seconds:
        heard += f" ({result.silent_seconds} silent)"
    print(
        f"{_written(outputs)}: {result.frames} frames, {heard}, "
        f"{result.mask_share:.1%} of the picture sounds"
    )
    print(f"{pipeline.backend_text}, {pipeline.precision}: {rate:.1f} frames/s; {lanes.how}")
    print(f"a frame's time, stages beside each other: {split_of(prepared.times, result.frames)}")


def _run_still(request: RunRequest) -> None:
    from save_deploy.runtime.sources import name_of, run_folder
    from save_deploy.runtime.video.still import StillRun

    picture, sound = request.sources
    with ExitStack() as stack:
        outputs, overlay = request.outputs, None
        if not (outputs.files or outputs.show):
            folder = stack.enter_context(run_folder(name_of(picture)))
            out, record = folder / "mask.png", folder / "record.json"
            outputs, overlay = replace(outputs, out=out, record=record), folder / "overlay.png"
        prepared = StillRun(Path(picture), Path(sound), outputs, overlay=overlay)
        mask_still(prepared, request.bundle, request.placement)


def mask_still(prepared: StillRun, bundle: Path, placement: Placement) -> None:
    """What save-run and save-deploy mask do with a picture and a sound."""
    outputs = prepared.outputs
    _check_not_of_bundle(outputs, bundle)
    with placement.load(bundle) as pipeline:
        began = time.monotonic()
        found = prepared(pipeline, head=_head(bundle, pipeline))
        took = time.monotonic() - began
    overlay = () if prepared.overlay is None else (prepared.overlay,)
    print(f"{_written(outputs, *overlay)}: {found.share:.1%} of the picture sounds")
    print(f"{pipeline.backend_text}, {pipeline.precision}: {1000 * took:.0f} ms")


def _head(bundle: Path, pipeline: SavePipeline) -> dict[str, Any]:
    return {
        "bundle": str(bundle),
        "precision": pipeline.precision,
        "backend": pipeline.backend,
    }


def _check_not_of_bundle(outputs: OutputOptions, bundle: Path) -> None:
    from save_deploy.files import check_not_of_bundle

    for path in outputs.files:
        check_not_of_bundle(path, bundle)


def _written(outputs: OutputOptions, *more: Path) -> str:
    return ", ".join(map(str, (*outputs.files, *more))) or "shown"


def _run_live(request: RunRequest, source: str) -> None:
    from save_deploy.progress import progress
    from save_deploy.runtime.live.run import LiveRun
    from save_deploy.runtime.sources import name_of, run_folder

    with ExitStack() as stack:
        outputs = request.outputs
        if not (outputs.files or outputs.show):
            folder = stack.enter_context(run_folder(name_of(source)))
            outputs = replace(outputs, out=folder / "overlay.mp4")
        options = RunOptions(video=Path(source), **vars(outputs))
        _check_not_of_bundle(options, request.bundle)
        prepared = LiveRun(options, request.live)
        with request.placement.load(request.bundle) as pipeline, progress("masks", None) as advance:
            result = prepared(pipeline, on_mask=advance)
    for line in result.lines():
        print(line)
    if options.out is not None:
        print(f"{options.out}: {result.masks} frames")
    print(f"{pipeline.backend_text}, {pipeline.precision}: {result.frames_per_s:.1f} frames/s")


def _run_many(request: RunRequest) -> None:
    from save_deploy.runtime.bulk.film import FilmOptions
    from save_deploy.runtime.bulk.run import BulkRun
    from save_deploy.runtime.bulk.worker import Task

    placement, outputs = request.placement, request.outputs
    if outputs.out is None:
        outputs = replace(outputs, out=_folder_of_many(request))
    prepared = BulkRun(request.sources, request.bulk, outputs)
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


def _folder_of_many(request: RunRequest) -> Path:
    """runs/NAME, in which the same command goes on where it was ended."""
    from save_deploy.runtime.sources import RUNS, name_of

    named = request.bulk.manifest or next(iter(request.sources), "videos")
    named = str(Path(named).absolute().parent) if len(request.sources) > 1 else named
    return Path(RUNS) / name_of(named)
