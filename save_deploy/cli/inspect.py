"""save-inspect: what a bundle holds, and what its engines were built of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from save_deploy.cli.options import Bundle
from save_deploy.cli.tables import new_table, show
from save_deploy.errors import BundleError

if TYPE_CHECKING:
    from save_deploy.export.engine.receipt import Receipt


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
    found = manifest.precision.get("islands")
    islands = (
        [str(i.get("module")) for i in found if isinstance(i, dict)]
        if isinstance(found, list)
        else []
    )
    print(f"precision: {manifest.precision['precision']}"
          + (f", FP32 in {', '.join(islands)}" if islands else ""))  # fmt: skip
    table = new_table("file", "MB")
    for name, record in manifest.files.items():
        table.add_row(name, f"{record.size / 1e6:.1f}")
    show(table)
    if not manifest.engines:
        print(f"no engine   (save-deploy build {bundle})")
    for entry in manifest.engines:
        _print_entry(entry, kernels=kernels)


def _print_entry(entry: dict[str, Any], *, kernels: bool) -> None:
    """One engine of a manifest. Raises BundleError when its receipt is of another version."""
    from save_deploy.export.engine.receipt import Receipt

    try:
        receipt = Receipt.from_dict(entry["receipt"])
        print_engine(entry, receipt)
        parts = receipt.by_module()
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # any value of any type
        raise BundleError(
            "receipt of an engine cannot be read",
            got=f"{entry.get('file')}: {error!r}",
            expected="a receipt of this version of save-deploy",
            hint="build the engine again: save-deploy build BUNDLE",
        ) from error
    table = new_table("part", "kernels")
    for part, n in parts.items():
        table.add_row(part, str(n))
    show(table)
    if kernels:
        table = new_table("kernel", "type", "data types", "modules")
        for row in receipt.kernels:
            table.add_row(row.name, row.type, row.dtypes, ", ".join(row.modules))
        show(table)


def print_engine(entry: dict[str, Any], receipt: Receipt) -> None:
    made_for = ", ".join(entry["targets"]) + (f" ({entry['gpu']})" if entry["gpu"] else "")
    print(f"{entry['file']}: {entry['library']} {entry['library_version']}, for {made_for}")
    table = new_table("receipt", "")
    mib = lambda n: "not reported" if n is None else f"{n / 2**20:.1f} MiB"
    kinds = ", ".join(f"{kind} {n}" for kind, n in receipt.kernels_by_type.items())
    table.add_row("kernels", f"{receipt.n_kernels}: {kinds}")
    table.add_row("MatMuls", "\n".join(f"{n} {how}" for how, n in receipt.products.items()))
    table.add_row("attentions", _attentions(receipt))
    if receipt.unproven:
        table.add_row("not named", f"{len(receipt.unproven)} quantized MatMuls and attentions")
    if receipt.quantised_asked:
        table.add_row(
            "quantized", f"{receipt.quantised} of {receipt.quantised_asked} multiply 8-bit numbers"
        )
    table.add_row("only moving", f"{receipt.casts} casts, {receipt.layout_copies} layout copies")
    table.add_row("memory", f"activations {mib(receipt.activation_bytes)}, weights "
                  f"{mib(receipt.weights_bytes)}, file {mib(receipt.engine_bytes)}")  # fmt: skip
    table.add_row("build", f"{receipt.build_s:.1f} s, peak {mib(receipt.peak_bytes)}")
    table.add_row("warnings", "\n".join(receipt.warnings) or "none")
    table.add_row("not known", "\n".join(receipt.unknown))
    show(table)


def _attentions(receipt: Receipt) -> str:
    text = f"{receipt.fused} of {receipt.attentions} are one kernel"
    if receipt.fp32_attentions:
        text += f"; {receipt.fp32_attentions} are FP32, which TensorRT does not fuse"
    return text


def _without_kernels(entry: dict[str, Any]) -> dict[str, Any]:
    receipt = entry.get("receipt") or {}
    return {**entry, "receipt": {k: v for k, v in receipt.items() if k != "kernels"}}
