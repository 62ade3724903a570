"""Which CPU backend `auto` takes for a bundle from now on, from the timing of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from save_deploy.bundle import GRAPHS, Manifest
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.compare.entries import Entry
from save_deploy.runtime.compare.speed import Timing
from save_deploy.runtime.session.measured import keep_faster


def keep_choices(
    bundles: Mapping[str, tuple[Path, Manifest]], entries: Sequence[Entry], timing: Timing,
    threads: int | None,
) -> list[str]:  # fmt: skip
    """Keep the faster CPU backend of each bundle whose both were timed; return a note for each."""
    notes = []
    for label, (folder, manifest) in bundles.items():
        of = {e.backend: timing.latency[e.name] for e in entries if e.bundle == label}
        beside = weight_files(folder / GRAPHS[0], manifest.files)
        faster = keep_faster(manifest.content_of(GRAPHS[0], beside), threads, of)
        if faster is not None:
            notes.append(f"{label}: auto takes {faster} from now on, the faster one here")
    return notes
