"""save-export: a checkpoint becomes a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import (
    CalibData,
    CalibMethod,
    CalibPairs,
    CalibSplit,
    Checkpoint,
    NoMerge,
    Sam,
    SkipBad,
    Smooth,
    Threads,
)
from save_deploy.errors import SaveDeployError
from save_deploy.precision import Precision

ExportTarget = Annotated[
    str | None,
    typer.Option(
        help="Form of the graph: portable, onnxruntime, openvino or tensorrt. Same weights and masks. "
        "Default: tensorrt where an engine is built, else portable.",
        show_default=False,
    ),
]


def export(
    ctx: typer.Context,
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    res: Annotated[int, typer.Option(help="Input side in px: 224, 256 or 1024.")] = 256,
    fp16: Annotated[
        bool | None,
        typer.Option(
            "--fp16/--fp32",
            help="Weights and activations; with --int8 or --fp8, of what is not quantized. Default: "
            "fp32; fp16 for --target tensorrt with --int8 or --fp8.",
            show_default=False,
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Encoder MatMuls in INT8, calibrated on real pairs.")
    ] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="Encoder MatMuls in FP8 E4M3, for GPUs from SM89 on.")
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, max=64, help="Frames per call: 5 for AVSBench's clips.")
    ] = 1,
    target: ExportTarget = None,
    engine: Annotated[
        str,
        typer.Option(
            help="TensorRT engine to build into the bundle: rtx (needs no GPU), tensorrt, none; auto: "
            "one for the GPU of this machine, if any. `save-build` does it later."
        ),
    ] = "auto",
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
            help="Parity budget. Default: 1e-3 for fp32, none for the others.", show_default=False
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Parity budget, IoU of masks. Default: 0.9999 for fp32, 0.995 for fp16, 0.97 for "
            "INT8 and FP8.",
            show_default=False,
        ),
    ] = None,
    calib_data: CalibData = None,
    calib_split: CalibSplit = "train",
    calib_pairs: CalibPairs = 64,
    calib_method: CalibMethod = None,
    calibration_table: Annotated[
        Path | None,
        typer.Option(
            help="Read ranges from a table written by save-calibrate.",
            show_default=False,
        ),
    ] = None,
    smooth: Smooth = True,
    skip_bad: SkipBad = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Precision search: M_J points that INT8 or FP8 may lose."
            " MatMuls that lose more stay in float.",
            show_default=False,
        ),
    ] = None,
    search_data: Annotated[
        str | None,
        typer.Option(
            help="Dataset whose val split the search uses. Default: the calibration data.",
            show_default=False,
        ),
    ] = None,
    search_clips: Annotated[
        int, typer.Option(min=4, help="Validation clips the search uses.")
    ] = 40,
    search_cost: Annotated[
        str | None,
        typer.Option(
            help="What the search makes small: time, measured here, or work, multiplications with "
            "8-bit ones counted half. Default: time, for --target tensorrt work.",
            show_default=False,
        ),
    ] = None,
    precision_from: Annotated[
        Path | None,
        typer.Option(
            help="Reuse the ranges and precision choice of this bundle.", show_default=False
        ),
    ] = None,
) -> None:
    """Turn a SAVE checkpoint into a bundle: merged, traced to ONNX, proven against eager, timed."""
    from save_deploy.export.engine import engine_for, why_no_engine
    from save_deploy.export.options import CalibrationOptions, ExportOptions, SearchOptions
    from save_deploy.files import check_folder_target

    refuse_unused(ctx)
    library = engine_for(engine)
    target = target or ("tensorrt" if library else "portable")
    options = ExportOptions(
        checkpoint=checkpoint,
        sam=sam,
        res=res,
        precision=_precision(fp16, int8=int8, fp8=fp8, target=target),
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
        calibration=CalibrationOptions(
            data=calib_data,
            split=calib_split,
            pairs=calib_pairs,
            method=calib_method,
            table=calibration_table,
            smooth=smooth,
            skip_bad=skip_bad,
        ),
        search=SearchOptions(
            max_drop=max_drop,
            data=search_data,
            clips=search_clips,
            cost=search_cost,
            reuse=precision_from,
        ),
    )
    if dry_run:
        from save_deploy.export.estimate import estimate, print_estimate

        print_estimate(estimate(options), options)
        return
    check_folder_target(options.folder, force=force)
    # late import: option errors must not wait for torch
    from save_deploy.export.export import export as run_export
    from save_deploy.progress import Stages
    from save_deploy.runtime.compare.export_table import print_table

    stages = Stages(options.stages)
    try:
        result = run_export(options, on_stage=stages)
    finally:
        stages.finish()
    print_table(result.rows, f"{result.folder}", result.note)
    if str(options.precision) == "fp16":
        print(
            "FP16 is meant for GPUs: CPU backends compute it in FP32, with casts or converted weights."
        )
    proof = result.proof
    print(
        f"merge: {len(proof.rewrites)} exact rewrites, max difference {proof.max_rel_diff:.0e} in "
        f"float64, {proof.macs_before / 1e9:.3g} -> {proof.macs_after / 1e9:.3g} GMAC a frame"
    )
    if result.fp16 is not None:
        kept = ", ".join(i.module for i in result.fp16.fp32_modules) or "none"
        scaled = len(result.fp16.scaled)
        scores = f"; scores of {scaled} attentions computed as q / 2^n" if scaled else ""
        print(f"kept in FP32: every {', '.join(result.fp16.fp32_ops)}; modules: {kept}{scores}")
    for line in result.lines:
        print(f"{options.precision}: {line}")
    if skip_bad and options.precision.quantized:
        from save_deploy.cli.calibrate import print_skipped
        from save_deploy.export.quantize.plan import TABLE_FILE

        print_skipped(json.loads((result.folder / TABLE_FILE).read_text())["data"])
    print(f"bundle: {result.folder}/   (report.md, manifest.json inside)")
    if library:
        _add_engine(result.folder, library)
    elif why := why_no_engine(engine):
        print(f"engine: {why} {result.folder}")


def _add_engine(bundle: Path, library: str) -> None:
    """The bundle is whole without it: when this fails, `save-build` can try again."""
    from save_deploy.cli.inspect import print_engine
    from save_deploy.export.engine import BuildOptions, Receipt, add_engine

    entry = add_engine(
        bundle,
        BuildOptions(library=library),
        on_line=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print_engine(entry, Receipt.from_dict(entry["receipt"]))


def _precision(fp16: bool | None, *, int8: bool, fp8: bool, target: str) -> Precision:
    if int8 and fp8:
        raise SaveDeployError("two formats", got="--int8 and --fp8", expected="one of them")
    if not (int8 or fp8):
        return Precision("fp16" if fp16 else "fp32")
    if fp16 is None:
        fp16 = target == "tensorrt"  # it fuses attention in FP16 only
    return Precision("fp16" if fp16 else "fp32", "int8" if int8 else "fp8")


_MEASURING = {
    "calib_data": "--calib-data",
    "calib_split": "--calib-split",
    "calib_pairs": "--calib-pairs",
    "skip_bad": "--skip-bad",
    "smooth": "--smooth/--no-smooth",
}
_READING = {"calibration_table": "--calibration-table", "precision_from": "--precision-from"}
_SEARCH = {
    "search_data": "--search-data",
    "search_clips": "--search-clips",
    "search_cost": "--search-cost",
}
_EIGHT_BITS = {
    **_MEASURING, **_READING, **_SEARCH, "calib_method": "--calib-method", "max_drop": "--max-drop",
}  # fmt: skip


def refuse_unused(ctx: typer.Context) -> None:
    """Looks at what stands on the command line of save-export, defaults excepted.

    Raises SaveDeployError for options of quantization without it, of measuring beside ranges that are
    read, and of the search without one.
    """
    given = lambda options: [text for name, text in options.items() if _is_given(ctx, name)]
    eight_bits, reading, measuring = given(_EIGHT_BITS), given(_READING), given(_MEASURING)
    if eight_bits and not (ctx.params["int8"] or ctx.params["fp8"]):
        raise SaveDeployError(
            "an option of quantization without it",
            got=", ".join(eight_bits),
            expected="--int8 or --fp8 beside it",
        )
    if reading and measuring:
        raise SaveDeployError(
            "ranges are read and measured",
            got=", ".join(reading + measuring),
            expected=f"{reading[0]} alone, or none of it: nothing is measured beside it",
        )
    if (search := given(_SEARCH)) and not _is_given(ctx, "max_drop"):
        raise SaveDeployError(
            "an option of the precision search without it",
            got=", ".join(search),
            expected="--max-drop beside it",
        )


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
