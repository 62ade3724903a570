"""Verbs that make a bundle: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from save_deploy.verbs.options import Checkpoint, Sam, Threads


def export(
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    res: Annotated[int, typer.Option(help="Input side in px: 224, 256 or 1024.")] = 256,
    fp16: Annotated[
        bool, typer.Option("--fp16/--fp32", help="Weights and activations of the model graph.")
    ] = False,
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
        data=data,
        n_golden=golden,
        out=out,
        force=force,
        rounds=rounds,
        threads=threads,
        max_abs_err=max_logit_error,
        min_agreement=min_agreement,
    )
    stages = Stages(STAGES)
    try:
        result = export_bundle(options, on_stage=stages)
    finally:
        stages.finish()
    print_table(result.rows, f"{result.folder}", result.note)
    if fp16:
        print(
            "FP16 is meant for GPUs: on a CPU, onnxruntime computes it in FP32 with casts between."
        )
    worst = max(r.max_rel_diff for r in result.proof.rewrites)
    print(
        f"merge: {len(result.proof.rewrites)} exact rewrites, max difference {worst:.0e} in float64"
    )
    if result.plan is not None:
        kept = ", ".join(i.module for i in result.plan.islands) or "none"
        print(f"kept in FP32: every {', '.join(result.plan.fp32_ops)}; modules: {kept}")
    print(f"bundle: {result.folder}/   (report.md, manifest.json inside)")
