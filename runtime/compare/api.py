"""save-compare as a function."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from save_deploy.extras import named_extras
from save_deploy.runtime.compare.options import CompareOptions
from save_deploy.runtime.compare.run import Comparison, run_comparison
from save_deploy.runtime.inputs import as_folder, as_path


@named_extras()
def compare(
    *bundles: str | os.PathLike[str],
    data: str | None = None,
    backend: str | None = None,
    clips: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    force: bool = False,
    options: CompareOptions | None = None,
    on_stage: Callable[[str, str], None] = lambda *_: None,
) -> Comparison:
    """Compare bundles with the eager model, as `save-compare` does.

    data: scenes (default) or a dataset.
    backend: auto (default), all, or a name.
    checkpoint: source checkpoint of the bundles; None for the built-in one.
    report: folder for report.html; None writes nothing. force: replace an earlier report there.
    options: all other options; the arguments above replace its fields.
    A result over budget is in `checks` and raises nothing. Raises SaveDeployError.

    >>> options = CompareOptions(bundles=(), rounds=3, frames=0)
    >>> found = compare(bundle, checkpoint=checkpoint, clips=1, backend="openvino", options=options)
    >>> [row.backend for row in found.rows]
    ['eager', 'openvino']
    >>> found.rows[1].parity.mask_agreement > 0.99
    True
    """
    from save_deploy.runtime.compare.report import check_folder, write_comparison

    asked = replace(
        options or CompareOptions(bundles=()), bundles=tuple(as_folder(b) for b in bundles)
    )
    given: dict[str, Any] = {
        "data": None if data is None else (data,),
        "backends": None if backend is None else (backend,),
        "clips": clips,
        "checkpoints": None if checkpoint is None else (as_path(checkpoint, "checkpoint"),),
        "memory": (report is not None) if asked.memory is None else None,
    }
    asked = replace(asked, **{k: v for k, v in given.items() if v is not None})
    folder = None if report is None else as_path(report, "report")
    if folder is not None:
        check_folder(folder, force=force)
    found = run_comparison(asked, on_stage=on_stage)
    if folder is not None:
        write_comparison(folder, found)
    return found
