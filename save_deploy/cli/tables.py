"""Tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def new_table(*columns: str) -> Table:
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in ("MB", "days", "kernels") else "left")
    return table


def show(table: Table) -> None:
    from rich.console import Console

    Console(width=None if Console().is_terminal else 132).print(table)
