"""save-build: build a TensorRT engine for a bundle."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.inspect import print_engine
from save_deploy.cli.takes import takes
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.receipt import Allow, Receipt
from save_deploy.options import option


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """A bundle, the options of its engine, and the accepted receipt failures."""

    bundle: Path = option(help="Folder written by save-export.")
    options: BuildOptions = field(default_factory=BuildOptions)
    allow: Allow = field(default_factory=Allow)


@takes(BuildRequest)
def build(
    request: BuildRequest,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be built, and stop.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build even when this engine is in the cache.")
    ] = False,
) -> None:
    """Build a TensorRT engine into a bundle and check it against the graph."""
    from save_deploy.export.engine.add import add_engine, plan_engine

    bundle = request.bundle
    if dry_run:
        print("\n".join(plan_engine(bundle, request.options).lines()))
        return
    entry = add_engine(
        bundle,
        request.options,
        allow=request.allow,
        use_cache=not no_cache,
        on_line=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print_engine(entry, Receipt.from_dict(entry["receipt"]))
    print(f"engine: {bundle / entry['file']}   (save-inspect {bundle})")
