"""Verbs that make a bundle: export, and its first half alone: merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from save_deploy.errors import ParityError
from save_deploy.verbs.options import Checkpoint, Sam, Threads

Target = Annotated[
    str,
    typer.Option(
        help="Form of the graph: portable, onnxruntime, openvino or tensorrt. Same weights and masks."
    ),
]
NoMerge = Annotated[
    list[str] | None,
    typer.Option(
        "--no-merge",
        metavar="NAME",
        help="Leave out a rewrite (repeatable); `save-deploy merge` lists their names.",
        show_default=False,
    ),
]


def export(
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    res: Annotated[int, typer.Option(help="Input side in px: 224, 256 or 1024.")] = 256,
    fp16: Annotated[
        bool, typer.Option("--fp16/--fp32", help="Weights and activations of the model graph.")
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, max=64, help="Frames per call: 5 for AVSBench's clips.")
    ] = 1,
    target: Target = "portable",
    no_merge: NoMerge = None,
    data: Annotated[
        str,
        typer.Option(help="Where golden samples come from: scenes, stamps or an AVSBench folder."),
    ] = "scenes",
    golden: Annotated[
        int, typer.Option(min=1, help="Golden samples in the bundle, also used for the table.")
    ] = 8,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Bundle folder. Default: CHECKPOINT_RES_PRECISION.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print size, work and memory it will need, and stop.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=3, help="Timing rounds.")] = 20,
    threads: Threads = None,
    max_logit_error: Annotated[
        float | None,
        typer.Option(
            help="Parity budget. Default: 1e-3 for fp32, none for fp16.", show_default=False
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Parity budget, IoU of masks. Default: 0.9999 for fp32, 0.995 for fp16.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a SAVE checkpoint into a bundle: merged, traced to ONNX, proven against eager, timed."""
    from save_deploy.export.run import STAGES, ExportOptions, export_bundle
    from save_deploy.progress import Stages
    from save_deploy.runtime.report import print_table

    options = ExportOptions(
        checkpoint=checkpoint,
        sam=sam,
        res=res,
        precision="fp16" if fp16 else "fp32",
        batch=batch,
        target=target,
        without=tuple(no_merge or ()),
        data=data,
        n_golden=golden,
        out=out,
        force=force,
        rounds=rounds,
        threads=threads,
        max_abs_err=max_logit_error,
        min_agreement=min_agreement,
    )
    if dry_run:
        from save_deploy.export.estimate import estimate, print_estimate

        print_estimate(estimate(options), options)
        return
    stages = Stages(STAGES)
    try:
        result = export_bundle(options, on_stage=stages)
    finally:
        stages.finish()
    print_table(result.rows, f"{result.folder}", result.note)
    if fp16:
        print(
            "FP16 is meant for GPUs: CPU backends compute it in FP32, with casts or converted weights."
        )
    proof = result.proof
    print(
        f"merge: {len(proof.rewrites)} exact rewrites, max difference {proof.max_rel_diff:.0e} in "
        f"float64, {proof.macs_before / 1e9:.3g} -> {proof.macs_after / 1e9:.3g} GMAC a frame"
    )
    if result.plan is not None:
        kept = ", ".join(i.module for i in result.plan.islands) or "none"
        print(f"kept in FP32: every {', '.join(result.plan.fp32_ops)}; modules: {kept}")
    print(f"bundle: {result.folder}/   (report.md, manifest.json inside)")


def merge(
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    res: Annotated[int, typer.Option(help="Input side in px: 224, 256 or 1024.")] = 256,
    target: Target = "portable",
    no_merge: NoMerge = None,
    proof: Annotated[
        bool, typer.Option("--proof", help="Also the difference of every encoder block.")
    ] = False,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="Write the proof to this file.", show_default=False),
    ] = None,
) -> None:
    """Merge a checkpoint and show what every exact rewrite did, compared in float64."""
    import json

    from save_deploy.checkpoints import load_model
    from save_deploy.export.merge import forms_for
    from save_deploy.export.merge import merge as run_merge
    from save_deploy.export.merge.table import print_proof

    forms = forms_for(target, res=res).without(*(no_merge or ()))
    _, found = run_merge(load_model(checkpoint, res=res, sam=sam), forms)
    print_proof(found, blocks=proof)
    if json_out is not None:
        json_out.write_text(json.dumps(found.to_dict(), indent=2) + "\n")
        print(f"proof: {json_out}")
    if not found.exact:
        raise ParityError("a rewrite is not exact", got=f"{found.max_rel_diff:.1e} in float64")
