"""save-build: a TensorRT engine for a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.inspect import print_engine
from save_deploy.cli.options import (
    Bundle,
)


def build(
    bundle: Bundle,
    library: Annotated[
        str,
        typer.Option(help="tensorrt, rtx, or auto: tensorrt where it and a driver are installed."),
    ] = "auto",
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="GPU",
            help="GPU of an RTX engine, by name or number: L4, 'RTX 4090', 8.6 (repeatable). "
            "Default: all but Turing.",
            show_default=False,
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(
            metavar="MIB", help="Limit of scratch memory while building.", show_default=False
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(help="0 builds fastest, 5 tries most. Default: 3.", show_default=False),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="Keep measured timings in this file (tensorrt).", show_default=False),
    ] = None,
    hardware_compatibility: Annotated[
        str, typer.Option(help="none, ampere_plus or same_compute_capability (tensorrt).")
    ] = "none",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs on later versions too (tensorrt).")
    ] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights",
            help="Leave the weights out of the engine: they come from model.onnx when it is loaded "
            "(from Python alone; needs a driver to build; never tried on a GPU).",
        ),
    ] = False,
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Let other weights be put into the engine (needs a driver)."),
    ] = False,
    allow_unfused: Annotated[
        bool,
        typer.Option(
            "--allow-unfused", help="Accept attentions that are not fused into one kernel."
        ),
    ] = False,
    allow_fp32: Annotated[
        bool, typer.Option("--allow-fp32", help="Accept MatMuls built in FP32.")
    ] = False,
    allow_dequantised: Annotated[
        bool,
        typer.Option("--allow-dequantised", help="Accept quantized MatMuls that multiply floats."),
    ] = False,
    allow_unproven: Annotated[
        bool,
        typer.Option(
            "--allow-unproven", help="Accept MatMuls whose precision the builder does not report."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be built, and stop.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build even when this engine is in the cache.")
    ] = False,
) -> None:
    """Build a TensorRT engine into a bundle and check that it is what the graph asks for."""

    from save_deploy.export.engine import Allow, BuildOptions, Receipt, add_engine, plan_engine

    options = BuildOptions(
        library=library,
        targets=tuple(name for given in gpus or () for name in given.split(",")),
        workspace_mib=workspace,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
        strip_weights=strip_weights,
        refit=refit,
    )
    if dry_run:
        print("\n".join(plan_engine(bundle, options).lines()))
        return
    entry = add_engine(
        bundle,
        options,
        allow=Allow(
            unfused=allow_unfused,
            fp32=allow_fp32,
            dequantised=allow_dequantised,
            unproven=allow_unproven,
        ),
        use_cache=not no_cache,
        on_line=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print_engine(entry, Receipt.from_dict(entry["receipt"]))
    print(f"engine: {bundle / entry['file']}   (save-deploy inspect {bundle})")
