"""save-deploy polygraphy: a script that compares backends with Polygraphy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def polygraphy(
    bundle: Annotated[Path, typer.Argument(help="Folder written by save-export.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Script to write.")] = Path(
        "compare_polygraphy.py"
    ),
) -> None:
    """Write a script that compares backends of a bundle with NVIDIA's Polygraphy."""
    from save_deploy.runtime.polygraphy_script import write_script

    written = write_script(bundle, out)
    print(f"{written}: run it with the Python that has save-deploy[polygraphy]")
