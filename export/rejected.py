"""What is kept of an export over its budget: OUT.rejected/, its report and its worst frames."""

from __future__ import annotations

import shutil
from pathlib import Path

from save_deploy.errors import OutputError, ParityError
from save_deploy.export.golden import Golden
from save_deploy.export.prove import Proved
from save_deploy.files import new_folder
from save_deploy.runtime.pictures import NamedFrames, write_worst

_KEPT = ("report.md", "report.json", "worst_*.png")


def rejected_folder(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.rejected")


def keep_rejected(
    error: ParityError, folder: Path, bundle: Path, golden: Golden, proved: Proved
) -> ParityError:
    """Copy the report out of the unfinished bundle in `folder`; worst frames of its own graph are drawn
    where the report has none. An earlier rejected folder is replaced.

    -> the error with the place of what was kept, or as it was where that cannot be written.
    """
    target = rejected_folder(bundle)
    try:
        with new_folder(target, what="the rejected report", is_ours=_check_ours) as place:
            for pattern in _KEPT:
                for file in folder.glob(pattern):
                    shutil.copy(file, place / file.name)
            if not list(place.glob("worst_*.png")):
                pairs = golden.pairs
                frames = NamedFrames(pairs.image, pairs.names, pairs.truth)
                labels = ("eager", proved.entries[-1].name)
                write_worst(place, frames, golden.mask_logits, proved.logits[-1], labels=labels)
    except OutputError:
        return error
    return ParityError(
        error.what,
        got=error.got,
        expected=error.expected,
        hint=f"look at {target}/report.md and worst_*.png; {error.hint}",
    )


def _check_ours(folder: Path) -> None:
    """Raise OutputError for a folder that holds something else than a rejected report."""
    known = {path for pattern in _KEPT for path in folder.glob(pattern)}
    if others := sorted(set(folder.iterdir()) - known):
        raise OutputError(f"it holds {others[0].name}, which is of no rejected report")
