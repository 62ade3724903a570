"""save-deploy recipes: list the rows of the paper's tables."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show this one; default: list all.", show_default=False)
    ] = None,
) -> None:
    """List the recipes, one per row of the paper's tables, or show one with its printed numbers."""
    from rich.table import Table

    from save_deploy.console import new_console
    from save_deploy.recipes.paper import paper_says
    from save_deploy.recipes.recipe import built_in_recipes, load_recipe

    console = new_console()
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
