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

    from save_deploy.console import new_console

    new_console().print(table)
