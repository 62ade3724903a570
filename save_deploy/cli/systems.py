"""save-deploy systems: the systems the paper compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from save_deploy.cli.options import (
    Threads,
)


def systems(
    backbone: Annotated[str, typer.Option(help="vit_t, vit_b, vit_l or vit_h.")] = "vit_b",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Also train a step, score, export and time each, with random weights."
        ),
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="Comma-separated systems.", show_default=False)
    ] = None,
    res: Annotated[int, typer.Option(help="224, 256 or 1024.")] = 256,
    rounds: Annotated[int, typer.Option(min=3, help="Timing rounds.")] = 10,
    threads: Threads = None,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="Write the table to this file.", show_default=False),
    ] = None,
) -> None:
    """List the systems the paper compares: parameters, what each trains; with --measure, proof that
    each trains, scores and exports."""
    from rich.console import Console
    from rich.table import Table

    from save_deploy.progress import progress
    from save_deploy.systems import SYSTEMS, system
    from save_deploy.training.systems_table import COLUMNS, MEASURED, size_row

    names = only.split(",") if only else list(SYSTEMS)
    rows = [size_row(name, system(name), backbone, res) for name in names]
    if measure:
        from save_deploy.cli.measure_systems import measure_system

        with progress(f"measuring systems on {backbone}", len(rows)) as advance:
            for row in rows:
                row.update(measure_system(row["key"], backbone, res, rounds, threads))
                advance(row["system"])
    columns = COLUMNS + (MEASURED if measure else ())
    console = Console(width=None if Console().is_terminal else 160)
    table = Table(title=f"{backbone} at {res} px", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("system", "learns") else "right")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    console.print(table)
    for name in names:
        if system(name).note:
            print(f"{system(name).title}: {system(name).note}")
    if json_out is not None:
        json_out.write_text(json.dumps(rows, indent=2) + "\n")
        print(f"written: {json_out}")


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
