"""save-deploy cache: list and delete cached engines."""

from __future__ import annotations

from typing import Annotated

import typer

from save_deploy.cli.tables import new_table, show


def cache_ls() -> None:
    """List the cached engines of earlier builds."""
    from save_deploy.export.engine import cache

    found = [*cache.unfinished(), *cache.entries()]
    table = new_table("key", "library", "targets", "MB", "days")
    for e in found:
        library = "damaged" if e.damaged else e.library
        library = "unfinished" if e.unfinished else library
        row = (e.key[:12], library, " ".join(e.targets), f"{e.size / 1e6:.1f}", f"{e.age_days:.1f}")
        table.add_row(*row)
    show(table)
    print(f"{len(found)} engines, {sum(e.size for e in found) / 1e6:.1f} MB in {cache.folder()}")


def cache_rm(
    key: Annotated[
        str, typer.Argument(help="Start of a key of `cache ls`. Default: all.", show_default=False)
    ] = "",
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Only those older than this.", show_default=False),
    ] = None,
) -> None:
    """Delete cached engines of earlier builds. Engines in bundles are kept."""
    from save_deploy.export.engine import cache

    gone = cache.remove(key, older_than_days=older_than)
    print(f"removed {len(gone)} engines, {sum(e.size for e in gone) / 1e6:.1f} MB")
