"""save-run: mask what sounds in a video."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.cli.options import Placement
from save_deploy.cli.takes import takes
from save_deploy.options import option
from save_deploy.runtime.live.options import LiveOptions
from save_deploy.runtime.video.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A bundle, where it runs, and the video."""

    bundle: Path = option(help="Folder written by save-export.")
    options: RunOptions
    live: LiveOptions = field(default_factory=LiveOptions)
    placement: Placement = field(default_factory=Placement)


@takes(RunRequest)
def run(request: RunRequest) -> None:
    """Mask what sounds in a video: overlay video, masks as PNG, a JSON record."""
    from save_deploy.progress import progress
    from save_deploy.runtime.video.run import VideoRun

    if request.live.live:
        return _run_live(request)
    options = request.options
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


def _run_live(request: RunRequest) -> None:
    from save_deploy.progress import progress
    from save_deploy.runtime.live.run import LiveRun

    prepared = LiveRun(request.options, request.live)
    with request.placement.load(request.bundle) as pipeline, progress("masks", None) as advance:
        result = prepared(pipeline, on_mask=advance)
    for line in result.lines():
        print(line)
    if request.options.out is not None:
        print(f"{request.options.out}: {result.masks} frames")
