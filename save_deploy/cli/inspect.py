"""save-inspect: contents of a bundle and receipts of its engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from save_deploy.cli.options import Bundle
from save_deploy.cli.tables import new_table, show
from save_deploy.errors import BundleError

if TYPE_CHECKING:
    from save_deploy.bundle import Manifest
    from save_deploy.export.engine.receipt import Receipt


def inspect_bundle(
    bundle: Bundle,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write it to this .json file; alone: print it.", show_default=False
        ),
    ] = None,
    files: Annotated[bool, typer.Option("--files", help="List every file and its size.")] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="List every engine's kernels and their modules.")
    ] = False,
) -> None:
    """Show a bundle's system, checkpoint, form, budget, scores, engines and their GPUs."""
    from save_deploy.bundle import Manifest

    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    told = _lines(bundle, manifest)
    if json_out is not None:
        values = {
            "model": manifest.config.name,
            "res": manifest.config.res,
            "precision": manifest.precision["precision"],
            "files": {n: r.size for n, r in manifest.files.items()},
            "engines": [e if kernels else _without_kernels(e) for e in manifest.engines],
            "system": manifest.config.system,
            "target": manifest.merge.get("target"),
            "source": manifest.source,
            "budget": manifest.golden.get("budget"),
            "about": told,
        }
        from save_deploy.files import write_text

        write_text(json_out, json.dumps(values, indent=2) + "\n", what="the report")
        return
    n, size = len(manifest.files), sum(r.size for r in manifest.files.values())
    print(f"{bundle}: all {n} files as recorded, {size / 1e6:.1f} MB")
    for name, text in told.items():
        print(f"  {name:<12}{text}")
    if files:
        table = new_table("file", "MB")
        for name, record in manifest.files.items():
            table.add_row(name, f"{record.size / 1e6:.1f}")
        show(table)
    for entry in manifest.engines:
        _print_entry(entry, kernels=kernels)


def _lines(bundle: Path, manifest: Manifest) -> dict[str, str]:
    """Return the summary as label -> text, without empty entries."""
    config, golden = manifest.config, manifest.golden
    batches = [manifest.model.inputs[0].shape[0], *manifest.batches]
    calls = "" if batches == [1] else f", {' or '.join(map(str, batches))} frames a call"
    sources = [f"{f['name']} (sha256 {f['sha256'][:12]})" for f in manifest.source["files"]]
    lines = {
        "system": f"{config.system}, {config.name} at {config.res} px{calls}",
        "checkpoint": " + ".join(sources),
        "precision": _precision(manifest),
        "form": _form(manifest),
        "inputs": "; ".join(
            f"{spec.name} {spec.dtype} {spec.shape}" for spec in manifest.model.inputs
        ),
        "golden": _golden(golden),
        "scores": _scores(bundle, str(manifest.precision["precision"])),
        "backend": _backend(bundle, manifest),
        "engines": "; ".join(map(_engine_line, manifest.engines))
        or f"none   (save-build {bundle})",
        "made with": ", ".join(
            f"{name} {manifest.versions[name]}"
            for name in ("save-deploy", "torch", "onnx")
            if name in manifest.versions
        ),
    }
    return {name: text for name, text in lines.items() if text}


def _precision(manifest: Manifest) -> str:
    found = manifest.precision.get("islands")
    kept = found if isinstance(found, list) else []
    islands = [str(island.get("module")) for island in kept if isinstance(island, dict)]
    return str(manifest.precision["precision"]) + (
        f", FP32 in {', '.join(islands)}" if islands else ""
    )


def _form(manifest: Manifest) -> str:
    target = manifest.merge.get("target")
    if not isinstance(target, str):
        return ""
    return (
        target if target == "tensorrt" else f"{target}, for CPUs; --target tensorrt is for engines"
    )


def _golden(golden: Mapping[str, Any]) -> str:
    """Describe the golden pairs: their number, the backend's budget, the share that sounds."""
    from save_deploy.runtime.golden import one_sided

    if not golden:
        return "none"
    budget, share = golden["budget"], golden.get("sounding_share")
    words = [f"{golden['n']} pairs", f"agreement with eager at least {budget['min_agreement']:g}"]
    if budget["max_abs_err"] is not None:
        words.append(f"logits within {budget['max_abs_err']:g}")
    if isinstance(share, float):
        words.append(one_sided(share) or f"{share:.1%} of their masks sounds")
    return ", ".join(words)


def _scores(bundle: Path, precision: str) -> str:
    """Return the score of the fastest backend in the export's report; "" without a valid report."""
    try:
        rows = json.loads((bundle / "report.json").read_bytes())["rows"]
        own = [row for row in rows if row["precision"] == precision and row["parity"]]
        best = max(own, key=lambda row: float(row["speedup"] or 0))
        m_j, eager = float(best["score"]["m_j"]), float(rows[0]["score"]["m_j"])
        agreement, faster = float(best["parity"]["mask_agreement"]), best["speedup"]
        text = f"M_J {m_j:.1f} on the golden pairs (eager {eager:.1f}), agreement {agreement:.4f}, "
        if faster is None:
            return text + "speed not known (the machine was busy)"
        return text + f"{float(faster):.1f} times as fast as eager with {best['backend']}"
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return ""


def _backend(bundle: Path, manifest: Manifest) -> str:
    """Return what auto takes where save-compare measured it on this machine, else ""."""
    from save_deploy.bundle import GRAPHS
    from save_deploy.onnx_files import weight_files
    from save_deploy.runtime.session.measured import MEASURED, faster_backend

    beside = weight_files(bundle / GRAPHS[0], manifest.files)
    found = faster_backend(manifest.content_of(GRAPHS[0], beside), None)
    return f"auto takes {found} on this machine, {MEASURED}" if found else ""


def _engine_line(entry: Mapping[str, Any]) -> str:
    targets = entry.get("targets")
    gpus = ", ".join(map(str, targets)) if isinstance(targets, list) else "?"
    return f"{entry.get('file')} ({entry.get('library')} {entry.get('library_version')}) for {gpus}"


def _print_entry(entry: dict[str, Any], *, kernels: bool) -> None:
    """Print one engine of a manifest. Raises BundleError for a receipt of another version."""
    from save_deploy.export.engine.receipt import Receipt

    try:
        receipt = Receipt.from_dict(entry["receipt"])
        print_engine(entry, receipt)
        parts = receipt.by_module()
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # values of any type
        raise BundleError(
            "engine receipt cannot be read",
            got=f"{entry.get('file')}: {error!r}",
            expected="a receipt of this version of save-deploy",
            hint="build the engine again: save-build BUNDLE",
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
