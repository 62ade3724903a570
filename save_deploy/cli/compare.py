"""save-compare: compare bundles on any backends and datasets with the eager model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.takes import takes
from save_deploy.runtime.compare.options import CompareOptions


@takes(CompareOptions)
def compare(
    options: CompareOptions,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write report.html, report.md, report.json and worst_*.png into this folder.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier report in --report.")
    ] = False,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write report.json to this .json file; alone: print it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare bundles with the eager model: M_J, M_F, agreement, speed, memory, worst frames."""
    import json
    import shlex
    import sys

    from save_deploy.progress import Stages
    from save_deploy.runtime.compare.budget import require
    from save_deploy.runtime.compare.report import (
        check_folder,
        print_comparison,
        values_of,
        write_comparison,
    )
    from save_deploy.runtime.compare.run import STAGES, run_comparison

    options = replace(
        options,
        frames=options.frames if report is not None or json_out else 0,
        memory=report is not None if options.memory is None else options.memory,
    )
    if report is not None:
        check_folder(report, force=force)
    if json_out is not None:
        from save_deploy.files import check_file_target

        check_file_target(json_out, force=True)
    stages = Stages(STAGES)
    try:
        found = run_comparison(options, on_stage=stages)
    finally:
        stages.finish()
    found = replace(found, command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    if json_out is not None:
        from save_deploy.files import write_text

        text = json.dumps(values_of(found), indent=2, allow_nan=False) + "\n"
        write_text(json_out, text, what="the report")
    print_comparison(found)
    if report is not None:
        write_comparison(report, found)
        print(f"report: {report}/report.html")
    require(found.checks)
