"""save-deploy polygraphy: write golden samples as files for NVIDIA's Polygraphy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def polygraphy(
    bundle: Annotated[Path, typer.Argument(help="Folder written by save-export.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write: inputs.json, outputs.json.")
    ] = Path("polygraphy_samples"),
    force: Annotated[bool, typer.Option("--force", help="Replace such a folder.")] = False,
) -> None:
    """Write golden samples for NVIDIA's Polygraphy, and print commands that compare with them."""
    from save_deploy.runtime.polygraphy_samples import write_samples

    commands = write_samples(bundle, out, force=force)
    print(
        f"{out}: inputs, and what the eager model made of them; compare on a machine with Polygraphy:"
    )
    print("\n".join(commands))
