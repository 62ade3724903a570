"""Verbs for the paper's tables: systems, recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from save_deploy.verbs.options import Threads


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
        from save_deploy.verbs.measure_systems import measure_system

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


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show this one; default: list all.", show_default=False)
    ] = None,
) -> None:
    """List the recipes, one per row of the paper's tables, or show one with its printed numbers."""
    from rich.console import Console
    from rich.table import Table

    from save_deploy.recipes.paper import paper_says
    from save_deploy.recipes.recipe import built_in_recipes, load_recipe

    console = Console(width=None if Console().is_terminal else 132)
    if name is None:
        table = Table()
        for column in ("recipe", "row", "px", "chain", "paper: M_J / M_F"):
            table.add_column(column)
        for recipe in built_in_recipes():
            tests = list(recipe.test)
            table.add_row(
                recipe.name,
                f"{recipe.table} {recipe.row}",
                str(recipe.res),
                "; ".join(
                    " -> ".join([s.dataset for s in recipe.chain(t)] or ["nothing"]) for t in tests
                ),
                "; ".join(f"{t} {recipe.paper[t].text}" for t in tests if t in recipe.paper),
            )
        console.print(table)
        print("save-train --recipe NAME --test DATASET --root DIR   trains one")
        return
    recipe = load_recipe(name)
    print(f"{recipe.title} ({recipe.table}, {recipe.row})")
    print(f"model: {recipe.system} on {recipe.backbone} at {recipe.res} px {recipe.switches or ''}")
    for dataset, split in recipe.test.items():
        print(f"\ntest on {dataset} ({split})")
        for stage in recipe.chain(dataset):
            print(
                f"  train on {stage.dataset} at {stage.res} px: {stage.epochs} epochs, batch "
                f"{stage.batch} {stage.item}s x {stage.gpus} GPUs, lr {stage.lr:g} ({stage.schedule})"
            )
        for line in paper_says(recipe, dataset).lines():
            print(f"  {line}")
