"""save-export: a checkpoint becomes a bundle."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from save_deploy.cli.takes import takes
from save_deploy.errors import SaveDeployError
from save_deploy.export.options import GRAPH, QUANTIZATION, ExportOptions, parse_batches
from save_deploy.precision import Precision

if TYPE_CHECKING:
    from save_deploy.export.export import ExportResult


@takes(ExportOptions)
def export(
    options: ExportOptions,
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
        bool,
        typer.Option(
            "--fp8",
            help="Encoder MatMuls in FP8 E4M3, for GPUs from SM89 on.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = False,
    batch: Annotated[
        str,
        typer.Option(
            metavar="N,...",
            help="Frames per call, for example 5 for the clips of AVSBench. Several as 1,8,32: further "
            "graphs on the same weights, which calls with enough frames fill.",
            rich_help_panel=GRAPH,
        ),
    ] = "1",
    target: Annotated[
        str | None,
        typer.Option(
            help="Form of the graph: portable, onnxruntime, openvino or tensorrt. Same weights and "
            "masks. Default: tensorrt where an engine is built, else portable.",
            show_default=False,
            rich_help_panel=GRAPH,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="TensorRT engine to build into the bundle: rtx (needs no GPU), tensorrt, none; auto: "
            "one for the GPU of this machine, if any. `save-build` does it later."
        ),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print size, work and memory it will need, and stop.")
    ] = False,
) -> None:
    """Turn a SAVE checkpoint into a bundle: merged, traced to ONNX, proven against eager, timed."""
    from save_deploy.bundle import check_own_bundle
    from save_deploy.export.engine.library import engine_for, why_no_engine
    from save_deploy.export.inputs import check_inputs
    from save_deploy.files import check_folder_target

    library = engine_for(engine)
    target = target or ("tensorrt" if library else "portable")
    precision = _precision(fp16, int8=int8, fp8=fp8, target=target)
    first, *more = parse_batches(batch)
    options = replace(
        options, target=target, precision=precision, batch=first, more_batches=tuple(more)
    )
    if dry_run:
        from save_deploy.export.estimate import estimate, print_estimate

        print_estimate(estimate(options), options)
        return
    check_folder_target(options.folder, force=options.force, is_ours=check_own_bundle)
    check_inputs(options)
    # late import: option errors must not wait for torch
    from save_deploy.export.export import export as run_export
    from save_deploy.progress import Stages

    stages = Stages(options.stages)
    try:
        result = run_export(options, on_stage=stages)
    finally:
        stages.finish()
    print_result(result, options)
    if library:
        _add_engine(result.folder, library)
    elif why := why_no_engine(engine):
        print(f"engine: {why} {result.folder}")


def print_result(result: ExportResult, options: ExportOptions) -> None:
    """The comparison, what was merged, kept in FP32 and quantized, and where the bundle is."""
    from save_deploy.runtime.compare.export_table import print_table

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
    for line in result.notes:
        print(f"note: {line}")
    if options.calibration.skip_bad and options.precision.quantized:
        from save_deploy.cli.calibrate import print_skipped
        from save_deploy.export.quantize.plan import TABLE_FILE

        print_skipped(json.loads((result.folder / TABLE_FILE).read_text())["data"])
    print(f"bundle: {result.folder}/   (report.md, manifest.json inside)")


def _add_engine(bundle: Path, library: str) -> None:
    """The bundle is whole without it: when this fails, `save-build` can try again."""
    from save_deploy.cli.inspect import print_engine
    from save_deploy.export.engine.add import add_engine
    from save_deploy.export.engine.options import BuildOptions
    from save_deploy.export.engine.receipt import Receipt

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
