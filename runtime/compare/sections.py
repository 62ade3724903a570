"""Sections of the page from a bundle's own reports: merge, quantization, engines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from save_deploy.bundle import Manifest
from save_deploy.errors import SaveDeployError
from save_deploy.fields import read_json
from save_deploy.runtime.html.data import Figure, Section, Table

SENSITIVITY = "sensitivity.png"
_Made = tuple[str, Table | Figure | str] | None


def bundle_sections(folder: Path, manifest: Manifest, label: str = "") -> tuple[Section, ...]:
    """Return sections from the manifest and the files it lists.

    label: name of the bundle in every title.
    A section with missing or invalid values is left out, because a bundle is valid without reports.
    """
    report = _report(folder, manifest)
    makers: list[Callable[[], _Made]] = [
        lambda: _merge(manifest.merge),
        lambda: _calibration(manifest.precision.get("quantization") or {}),
        lambda: _search(report.get("search")),
        lambda: _sensitivity(folder, manifest),
        lambda: _blocks(report.get("block_sqnr_db")),
        lambda: _islands(manifest.precision),
        *(partial(_receipt, entry) for entry in manifest.engines),
    ]
    found = []
    for make in makers:
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OSError):
            found.append(make())
    before = f"{label}: " if label else ""
    return tuple(Section(before + item[0], item[1]) for item in found if item is not None)


def _report(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the values of report.json, {} when it cannot be read."""
    if "report.json" in manifest.files:
        with contextlib.suppress(SaveDeployError):
            return read_json(folder / "report.json", what="report").values
    return {}


def _merge(merge: Mapping[str, Any]) -> tuple[str, Table] | None:
    """Return every rewrite with its saved multiplications and float64 difference from eager."""
    rows = [
        (
            r["name"],
            r["folded"],
            _from_to(f"{r['macs_before'] / 1e6:.1f}", f"{r['macs_after'] / 1e6:.1f}"),
            f"{r['max_rel_diff']:.1e}",
        )
        for r in merge.get("rewrites", ())
    ]
    columns = ("rewrite", "what was folded", "million multiplications a frame", "error")
    return _table("Merge, each rewrite against eager in float64", columns, rows)


def _calibration(quantization: Mapping[str, Any]) -> tuple[str, Table] | None:
    calibration = quantization.get("calibration")
    if not calibration:
        return None
    rows = [
        ("format", str(quantization.get("format", ""))),
        ("ranges by", str(calibration.get("method", ""))),
        ("measured on", f"{calibration.get('pairs', '?')} pairs of {calibration.get('source')}"),
        ("MatMuls in INT8 or FP8", str(len(quantization.get("products", ())))),
        ("units kept in float", ", ".join(quantization.get("float_units", ())) or "none"),
        ("chosen by", str(quantization.get("chosen_by", ""))),
        ("norms smoothed", str(len(quantization.get("smoothing", {})))),
        ("MatMuls with bias correction", str(len(quantization.get("bias_corrected", ())))),
    ]
    rows += [
        (f"INT8 kernels on {backend}", f"{k['int8']} of {k['asked']}")
        for backend, k in quantization.get("kernels", {}).items()
    ]
    return _table("Quantization and its calibration", ("", "value"), rows)


def _search(search: Mapping[str, Any] | None) -> tuple[str, Table] | None:
    """Return M_J and agreement of the candidates of a precision search."""
    if not search:
        return None
    rows = []
    for key, words in (("eager", "eager"), ("full", "all quantized"), ("chosen", "chosen")):
        found = search.get(key)
        if isinstance(found, Mapping):
            rows.append((words, _number(found, "m_j", ".2f"), _number(found, "agreement", ".5f")))
    title = f"Precision search, budget {search.get('max_drop')} M_J points"
    return _table(title, ("candidate", "M_J", "agreement"), rows)


def _sensitivity(folder: Path, manifest: Manifest) -> tuple[str, Figure] | None:
    if SENSITIVITY not in manifest.files:
        return None
    alt = "M_J lost when one unit alone is quantized, by unit"
    return "Precision search, one unit alone quantized", Figure(
        (folder / SENSITIVITY).read_bytes(), alt
    )


def _blocks(sqnr: Sequence[float | None] | None) -> tuple[str, Table] | None:
    rows = [
        (str(i), "equal" if value is None else f"{value:.1f}") for i, value in enumerate(sqnr or ())
    ]
    return _table("Signal to noise of every encoder block against float", ("block", "dB"), rows)


def _islands(precision: Mapping[str, Any]) -> tuple[str, Table] | None:
    """Return the modules that an FP16 graph keeps in FP32, and the reasons."""
    islands = precision.get("islands") or (precision.get("floats") or {}).get("islands") or ()
    rows = [(i["module"], i["reason"], f"{i['value']:.4g}") for i in islands]
    return _table("Kept in FP32", ("module", "why", "found"), rows)


def _receipt(entry: Mapping[str, Any]) -> tuple[str, Table] | None:
    """Return the receipt of one engine."""
    receipt = entry.get("receipt") or {}
    counts = {
        "attentions": "attentions",
        "fused": "attentions in one kernel",
        "quantised_asked": "quantized MatMuls",
        "quantised": "quantized MatMuls that multiply INT8 or FP8 numbers",
        "casts": "casts",
        "layout_copies": "layout copies",
    }
    rows = [
        ("file", str(entry.get("file", ""))),
        ("library", f"{entry.get('library')} {entry.get('library_version')}"),
        ("GPUs", ", ".join(entry.get("targets", ())) or str(entry.get("gpu") or "")),
        ("engine", f"{entry.get('engine_bytes', 0) / 1e6:.1f} MB"),
        ("kernels", str(len(receipt.get("kernels", ())))),
    ]
    rows += [(label, str(receipt[key])) for key, label in counts.items() if key in receipt]
    rows += [(f"MatMuls {kind}", str(n)) for kind, n in receipt.get("products", {}).items()]
    rows += [(f"{kind} kernels", str(n)) for kind, n in receipt.get("kernels_by_type", {}).items()]
    if receipt.get("unknown"):
        rows.append(("not known before a run", "; ".join(receipt["unknown"])))
    return _table(f"Engine {entry.get('file', '')}", ("", "value"), rows)


def _table(
    title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> tuple[str, Table] | None:
    return (title, Table(columns, tuple(rows))) if rows else None


def _from_to(before: str, after: str) -> str:
    return before if before == after else f"{before} to {after}"


def _number(values: Mapping[str, Any], key: str, form: str) -> str:
    return format(values[key], form) if key in values else ""
