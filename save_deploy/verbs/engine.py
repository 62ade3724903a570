"""Verbs for TensorRT engines: build, inspect, cache ls, cache rm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from save_deploy.export.engine.receipt import Receipt

Bundle = Annotated[Path, typer.Argument(help="Folder written by save-export.")]


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
        typer.Option(metavar="MIB", help="Scratch memory it may use.", show_default=False),
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
        bool, typer.Option("--allow-unfused", help="Accept attentions that are not one kernel.")
    ] = False,
    allow_fp32: Annotated[
        bool, typer.Option("--allow-fp32", help="Accept products built in FP32.")
    ] = False,
    allow_dequantised: Annotated[
        bool,
        typer.Option("--allow-dequantised", help="Accept quantised products that multiply floats."),
    ] = False,
    allow_unproven: Annotated[
        bool,
        typer.Option("--allow-unproven", help="Accept products that the builder tells nothing of."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be built, and stop.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build even when this engine is in the cache.")
    ] = False,
) -> None:
    """Build a TensorRT engine into a bundle and check that it is what the graph asks for."""
    import sys

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


def inspect_bundle(
    bundle: Bundle,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest's part as JSON.")
    ] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Every kernel of every engine, with its modules.")
    ] = False,
) -> None:
    """Show what is in a bundle: files, precision, and what its engines were really built of."""
    from save_deploy.bundle import Manifest

    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    if as_json:
        values = {
            "model": manifest.config.name,
            "res": manifest.config.res,
            "precision": manifest.precision,
            "files": {n: r.size for n, r in manifest.files.items()},
            "engines": [e if kernels else _without_kernels(e) for e in manifest.engines],
        }
        print(json.dumps(values, indent=2))
        return
    print(f"{bundle}: {manifest.config.name} at {manifest.config.res} px, all files as recorded")
    islands = [island["module"] for island in manifest.precision.get("islands", ())]
    print(f"precision: {manifest.precision['precision']}"
          + (f", FP32 in {', '.join(islands)}" if islands else ""))  # fmt: skip
    table = _table("file", "MB")
    for name, record in manifest.files.items():
        table.add_row(name, f"{record.size / 1e6:.1f}")
    _show(table)
    if not manifest.engines:
        print(f"no engine   (save-deploy build {bundle})")
    for entry in manifest.engines:
        _print_entry(entry, kernels=kernels)


def cache_ls() -> None:
    """List the engines kept from earlier builds."""
    from save_deploy.export.engine import cache

    found = [*cache.unfinished(), *cache.entries()]
    table = _table("key", "library", "targets", "MB", "days")
    for e in found:
        library = "damaged" if e.damaged else e.library
        library = "unfinished" if e.unfinished else library
        row = (e.key[:12], library, " ".join(e.targets), f"{e.size / 1e6:.1f}", f"{e.age_days:.1f}")
        table.add_row(*row)
    _show(table)
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
    """Delete engines kept from earlier builds; those in bundles stay."""
    from save_deploy.export.engine import cache

    gone = cache.remove(key, older_than_days=older_than)
    print(f"removed {len(gone)} engines, {sum(e.size for e in gone) / 1e6:.1f} MB")


def _print_entry(entry: dict[str, Any], *, kernels: bool) -> None:
    """One engine of a manifest. Raises BundleError when its receipt is of another version."""
    from save_deploy.errors import BundleError
    from save_deploy.export.engine.receipt import Receipt

    try:
        receipt = Receipt.from_dict(entry["receipt"])
    except (KeyError, TypeError) as error:
        raise BundleError(
            "receipt of an engine cannot be read",
            got=f"{entry.get('file')}: {error!r}",
            expected="a receipt of this version of save-deploy",
            hint="build the engine again: save-deploy build BUNDLE",
        ) from error
    print_engine(entry, receipt)
    table = _table("part", "kernels")
    for part, n in receipt.by_module().items():
        table.add_row(part, str(n))
    _show(table)
    if kernels:
        table = _table("kernel", "type", "data types", "modules")
        for row in receipt.kernels:
            table.add_row(row.name, row.type, row.dtypes, ", ".join(row.modules))
        _show(table)


def print_engine(entry: dict[str, Any], receipt: Receipt) -> None:
    made_for = ", ".join(entry["targets"]) + (f" ({entry['gpu']})" if entry["gpu"] else "")
    print(f"{entry['file']}: {entry['library']} {entry['library_version']}, for {made_for}")
    table = _table("receipt", "")
    mib = lambda n: "not told" if n is None else f"{n / 2**20:.1f} MiB"
    kinds = ", ".join(f"{kind} {n}" for kind, n in receipt.kernels_by_type.items())
    table.add_row("kernels", f"{receipt.n_kernels}: {kinds}")
    table.add_row("products", "\n".join(f"{n} {how}" for how, n in receipt.products.items()))
    table.add_row("attentions", _attentions(receipt))
    if receipt.unproven:
        table.add_row("not named", f"{len(receipt.unproven)} quantised products and attentions")
    if receipt.quantised_asked:
        table.add_row(
            "quantised", f"{receipt.quantised} of {receipt.quantised_asked} multiply 8 bits"
        )
    table.add_row("only moving", f"{receipt.casts} casts, {receipt.layout_copies} layout copies")
    table.add_row("memory", f"activations {mib(receipt.activation_bytes)}, weights "
                  f"{mib(receipt.weights_bytes)}, file {mib(receipt.engine_bytes)}")  # fmt: skip
    table.add_row("build", f"{receipt.build_s:.1f} s, peak {mib(receipt.peak_bytes)}")
    table.add_row("warnings", "\n".join(receipt.warnings) or "none")
    table.add_row("not known", "\n".join(receipt.unknown))
    _show(table)


def _attentions(receipt: Receipt) -> str:
    text = f"{receipt.fused} of {receipt.attentions} are one kernel"
    if receipt.fp32_attentions:
        text += f"; {receipt.fp32_attentions} are FP32, which TensorRT does not fuse"
    return text


def _without_kernels(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "receipt": {k: v for k, v in entry["receipt"].items() if k != "kernels"}}


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in ("MB", "days", "kernels") else "left")
    return table


def _show(table: Table) -> None:
    from rich.console import Console

    Console(width=None if Console().is_terminal else 132).print(table)
