"""save-deploy merge: show the exact rewrites of a checkpoint and their proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import Checkpoint, Sam
from save_deploy.errors import ParityError


def merge(
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    res: Annotated[int, typer.Option(help="Input side in px: 224, 256 or 1024.")] = 256,
    target: Annotated[
        str,
        typer.Option(
            help="Form of the graph: portable, onnxruntime, openvino or tensorrt. Same weights and "
            "masks."
        ),
    ] = "portable",
    no_merge: Annotated[
        list[str] | None,
        typer.Option(
            "--no-merge",
            metavar="NAME",
            help="Leave out a rewrite (repeatable); `save-deploy merge` lists their names.",
            show_default=False,
        ),
    ] = None,
    proof: Annotated[
        bool, typer.Option("--proof", help="Also the difference of every encoder block.")
    ] = False,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write the proof to this file; alone: print it.", show_default=False
        ),
    ] = None,
) -> None:
    """Merge a checkpoint and show every exact rewrite with its float64 difference."""
    from save_deploy.export.merge.forms import forms_for
    from save_deploy.weight_files import check_given

    forms = forms_for(target, res=res).without(*(no_merge or ()))
    check_given(checkpoint, sam)
    # late import: option errors must not wait for torch
    from save_deploy.checkpoints import load_model
    from save_deploy.export.merge.deploy import merge as run_merge
    from save_deploy.export.merge.table import print_proof

    _, found = run_merge(load_model(checkpoint, res=res, sam=sam), forms)
    print_proof(found, blocks=proof)
    if json_out is not None:
        from save_deploy.files import write_text

        write_text(json_out, json.dumps(found.to_dict(), indent=2) + "\n", what="the report")
        print(f"proof: {json_out}")
    if not found.exact:
        raise ParityError("a rewrite is not exact", got=f"{found.max_rel_diff:.1e} in float64")
