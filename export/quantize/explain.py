"""Effects of quantization: executed kernels, speed against float, masks against eager.

Measured on the golden samples, and reported as lines for the terminal, as sections of report.md,
and as data in report.json and the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import GRAPHS, Arrays
from save_deploy.export.fp16 import Fp16Plan
from save_deploy.export.golden import Golden
from save_deploy.export.graph import is_large
from save_deploy.export.options import ExportOptions
from save_deploy.export.prove import Proved
from save_deploy.export.quantize.plan import QuantPlan, require_weight_bits
from save_deploy.export.quantize.search import SearchResult
from save_deploy.export.quantize.sensitivity import plot_sensitivity
from save_deploy.export.quantize.sqnr import block_sqnr
from save_deploy.machine import has_int8_dot_product
from save_deploy.metrics.latency import speedup, speedup_range
from save_deploy.metrics.margin import Margin, MarginMeter
from save_deploy.precision import Precision
from save_deploy.runtime.compare.rows import Row
from save_deploy.runtime.kernels import KernelCheck, executed_kernels
from save_deploy.runtime.pictures import NamedFrames, WorstFrame, write_worst
from save_deploy.runtime.session import default_threads

WORST_FRAMES = 4
SQNR_FRAMES = 4
KERNELS_NAMED, BLOCKS_NAMED = 4, 3  # maximum listed in a line
FP8_NOTE = (
    "FP8 has no CPU kernels: times here are of an emulation. FP8 is for NVIDIA GPUs from SM89 on."
)
NO_DOT_PRODUCT = "this CPU has no 8-bit dot product (VNNI or AMX)"
MAPPED = "ran with its weights mapped from the file because memory is short, which is slower"


@dataclass(frozen=True)
class Quantized:
    """The quantized graph.

    plan: the quantization plan.
    fp16: FP16 plan of the float parts, None for FP32.
    found: result of the search, None without one.
    nodes: MatMul nodes between Q/DQ pairs.
    """

    plan: QuantPlan
    fp16: Fp16Plan | None
    found: SearchResult | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """Measurements of the quantized graph.

    kernels: executed kernels per backend.
    sqnr: signal-to-quantization-noise ratio of each block in dB, None for a block without error;
        empty when not measured.
    margin: pixels near the threshold.
    worst: worst frames of `backend`.
    """

    kernels: tuple[KernelCheck, ...]
    sqnr: tuple[float | None, ...]
    margin: Margin
    worst: tuple[WorstFrame, ...]
    backend: str


@dataclass(frozen=True)
class Explanation:
    """Report of the effects of quantization.

    manifest: precision entry of the manifest.
    report: entries of report.json.
    sections: sections of report.md.
    lines: lines for the terminal.
    why: details of the error when the bundle is over budget.
    """

    manifest: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    sections: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    why: tuple[str, ...] = ()


def explain(
    made: Quantized, proved: Proved, golden: Golden, folder: Path, options: ExportOptions
) -> Explanation:
    """Measure the bundle's graph, folder/model.onnx, against fp32.onnx, and explain the result."""
    evidence = _measure(made, proved, golden, folder, options)
    drawn = made.found is not None and plot_sensitivity(made.found, folder / "sensitivity.png")
    lines = explain_lines(proved, evidence.kernels, evidence.sqnr, made.found, options)
    sections = [
        "## Verdict\n\n" + "\n".join(f"- {line}" for line in lines),
        _margin_section(evidence.margin, evidence.worst, evidence.backend),
    ]
    if evidence.sqnr:
        sections.append(_sqnr_section(evidence.sqnr))
    if made.found:
        sections.append(_search_section(made.found, drawn))
    return Explanation(
        manifest=_manifest(made, evidence, folder / GRAPHS[0], options),
        report={
            "kernels": [k.to_dict() for k in evidence.kernels],
            "margin": {"backend": evidence.backend, **asdict(evidence.margin)},
            "block_sqnr_db": list(evidence.sqnr),
            "worst_frames": [asdict(w) for w in evidence.worst],
            "search": made.found.to_dict() if made.found else None,
            "verdict": list(lines),
        },
        sections=tuple(sections),
        lines=lines,
        why=tuple(line for line in (weakest_blocks(evidence.sqnr), *lines) if line),
    )


def _measure(
    made: Quantized, proved: Proved, golden: Golden, folder: Path, options: ExportOptions
) -> Evidence:
    own = [e for e in proved.entries if e.precision == str(options.precision)]
    kernels: list[KernelCheck] = []
    if made.plan.fmt == "int8" and made.nodes:
        small = made.plan.weight_bits == 7
        run = partial(executed_kernels, threads=options.threads, small_weights=small)
        kernels = [run(e.backend, e.graph.path, made.nodes, proved.inputs) for e in own if e.graph]
    backend = proved.entries[-1].backend  # masks differ slightly per backend: record which one
    meter = MarginMeter()
    meter.add(golden.mask_logits, proved.logits[-1])
    worst = write_worst(
        folder, NamedFrames(golden.pairs.image, golden.pairs.names, golden.pairs.truth),
        golden.mask_logits, proved.logits[-1], k=WORST_FRAMES,
        labels=("eager", f"{options.precision} {backend}"),
    )  # fmt: skip
    sqnr = _sqnr(made.plan, golden, folder, options)
    return Evidence(tuple(kernels), tuple(sqnr), meter.result(), tuple(worst), backend)


def _manifest(
    made: Quantized, seen: Evidence, graph: Path, options: ExportOptions
) -> dict[str, Any]:
    kernels = {k.backend: {"asked": k.asked, "int8": k.int8} for k in seen.kernels}
    return {
        "precision": str(options.precision),
        "quantization": {
            **made.plan.to_dict(),
            **require_weight_bits(graph, made.plan),
            "kernels": kernels,
            "search": _short(made.found) if made.found else None,
        },
        **({"floats": made.fp16.to_dict()} if made.fp16 else {}),
    }


def explain_lines(
    proved: Proved, kernels: Sequence[KernelCheck],
    sqnr: Sequence[float | None], found: SearchResult | None, options: ExportOptions,
) -> tuple[str, ...]:  # fmt: skip
    """Return sentences for the terminal: speed on each backend, what was not measured, accuracy."""
    return (
        *_speed(proved, kernels, found, options),
        *_missing(proved, sqnr, options),
        _accuracy(proved.rows, found, options),
    )


def weakest_blocks(sqnr: Sequence[float | None]) -> str:
    """Return the blocks with the lowest signal-to-noise ratio as text, or ""."""
    measured = [(db, block) for block, db in enumerate(sqnr) if db is not None]
    shown = ", ".join(f"block {block} {db:.1f} dB" for db, block in sorted(measured)[:BLOCKS_NAMED])
    return shown and f"lowest signal to noise: {shown}"


def _speed(
    proved: Proved, kernels: Sequence[KernelCheck],
    found: SearchResult | None, options: ExportOptions,
) -> list[str]:  # fmt: skip
    fmt = str(options.precision.quantized).upper()
    if found is not None and len(found.float_units) == found.units:
        return [_nothing(found, fmt)]
    if fmt == "FP8":
        return [FP8_NOTE]
    if not kernels:
        return [_nothing(found, fmt)]
    mapped = {(e.backend, e.precision) for e in proved.entries if e.graph and e.graph.low_memory}
    lines = []
    for check in kernels:
        here = [row for row in proved.rows if row.backend == check.backend]
        own = next(row for row in here if row.precision == str(options.precision))
        ran = f"{check.int8} of {check.asked} MatMuls ran INT8 kernels"
        floats = [row for row in here if Precision.parse(row.precision).quantized is None]
        if not floats:
            text = f"{own.speedup_text} x eager on {check.backend}; {ran}"
            lines.append(f"{text}; no float graph was measured on this backend")
            continue
        best = min(floats, key=lambda row: row.latency.p50_ms)
        line = _against(best, own, check, ran, interleaved=proved.interleaved)
        if (best.backend, best.precision) in mapped:
            line += f"; {best.precision} {MAPPED}"
        lines.append(line)
    return lines


def _against(best: Row, own: Row, check: KernelCheck, ran: str, *, interleaved: bool) -> str:
    """Compare INT8 with the fastest float graph of a backend.

    INT8 is called faster or slower only when the quartiles of the speed-up agree.
    """
    ratio = speedup(best.latency, own.latency, interleaved=interleaved)
    if ratio is None or own.speedup is None:
        why = best.latency.withheld or own.latency.withheld or "eager was disturbed"
        return f"speed on {check.backend} not judged: {why}; {ran}"
    low, high = speedup_range(best.latency, own.latency, interleaved=interleaved)
    text = f"{ratio:.2f} x {best.precision} on {check.backend}, {own.speedup:.2f} x eager; {ran}"
    if high < 1:
        return f"NOT faster than {best.precision}: {text}; {_why_slow(check)}"
    if low <= 1:
        return (
            f"about as fast as {best.precision} ({low:.2f} to {high:.2f} x in the middle half of "
            f"the rounds): {text}; {_why_slow(check)}"
        )
    if check.not_int8:
        text += f" (in float: {', '.join(check.not_int8[:KERNELS_NAMED])})"
    return text


def _nothing(found: SearchResult | None, fmt: str) -> str:
    """Return why no MatMul is quantized."""
    if found is None:
        return "nothing is quantized, as in the bundle of --precision-from"
    reasons = []
    if found.slower:
        cpu = "" if has_int8_dot_product() else f"; {NO_DOT_PRODUCT}"
        reasons.append(f"{fmt} makes no {' or '.join(found.slower)} faster on {found.backend}{cpu}")
    if len(found.slower) < len(found.saved):
        of = "of the others " if found.slower else ""
        reasons.append(f"the budget of {found.max_drop:g} M_J points allows none {of}in {fmt}")
    text = f"nothing is quantized: {', and '.join(reasons)}"
    if found.slower:
        text += ". For an engine on another machine, search with --search-cost work"
    return text


def _why_slow(check: KernelCheck) -> str:
    if check.not_int8:
        return f"ran in float: {', '.join(check.not_int8[:KERNELS_NAMED])}"
    if not has_int8_dot_product():
        return NO_DOT_PRODUCT
    return "the graph is too small: INT8 MatMuls save less than their conversions cost"


def _missing(
    proved: Proved, sqnr: Sequence[float | None], options: ExportOptions
) -> tuple[str, ...]:
    measured = {(row.backend, row.precision) for row in proved.rows}
    backends = {b for b, precision in measured if precision == str(options.precision)}
    missing = [f"FP32 on {b}" for b in sorted(backends) if (b, "fp32") not in measured]
    if not any(precision == "fp16" for _, precision in measured):
        missing.append("the FP16 graph")
    if not sqnr:
        missing.append("signal to noise per block")
    if not missing:
        return ()
    reason = (
        "outputs of single blocks need kernels of the format"
        if proved.interleaved
        else "the model is too large to hold two graphs"
    )
    return (f"not measured: {', '.join(missing)} ({reason})",)


def _accuracy(rows: Sequence[Row], found: SearchResult | None, options: ExportOptions) -> str:
    own = [r for r in rows if r.precision == str(options.precision)]
    worst = min(own, key=lambda r: r.parity.mask_agreement if r.parity else 1.0)
    assert worst.parity is not None
    text = (
        f"masks agree with eager's to {worst.parity.mask_agreement:.4f} (at least "
        f"{options.budget.min_agreement} required), M_J {rows[0].score.m_j:.2f} -> "
        f"{worst.score.m_j:.2f} on {worst.score.n_frames} golden frames"
    )
    if found is None:
        return text
    return (
        f"{text}; search: M_J {found.eager.m_j:.2f} -> {found.chosen.m_j:.2f} on {found.frames} "
        f"frames of {found.data}, within the budget of {found.max_drop:g}, "
        f"{len(found.float_units)} of {found.units} branches in float"
    )


def _sqnr(
    plan: QuantPlan, golden: Golden, folder: Path, options: ExportOptions
) -> list[float | None]:
    """Return the signal-to-noise ratio of each block in dB, None for a block without error.

    Empty when the float graph was too large to keep, or the format is not INT8.
    """
    float_graph = folder / "fp32.onnx"
    if plan.fmt != "int8" or is_large(float_graph):
        return []
    batch = options.batch
    n = min(SQNR_FRAMES, len(golden.pairs))
    inputs: list[Arrays] = [
        {
            "image": golden.pairs.image[np.full(batch, i)],
            "audio_embedding": golden.audio_embedding[np.full(batch, i)],
        }
        for i in range(n)
    ]
    found = block_sqnr(
        float_graph, folder / "model.onnx", inputs, 1 + max(p.block for p in plan.sites),
        threads=options.threads or default_threads(),
    )  # fmt: skip
    return [round(v, 2) if np.isfinite(v) else None for v in found]


def _short(found: SearchResult) -> dict[str, Any]:
    """Return the manifest entry of a search. report.json has all of it."""
    keys = ("max_drop", "data", "clips", "frames", "backend", "eager", "full", "chosen")
    values = found.to_dict()
    return {key: values[key] for key in keys}


def _margin_section(margin: Margin, worst: Sequence[WorstFrame], backend: str) -> str:
    lines = [
        f"## Threshold margin (masks of {backend})",
        "",
        "| pixels with eager's logit | of all | of those that changed sides |",
        "|---|---:|---:|",
    ]
    for level, share in margin.near.items():
        lines.append(
            f"| nearer to 0 than {level} | {share:.2%} | {margin.flipped_near[level]:.1%} |"
        )
    lines += [
        "",
        f"{margin.flipped:.3%} of {margin.pixels} pixels changed sides: {margin.on} to sounding, "
        f"{margin.off} to silent.",
        "",
        f"Worst frames: picture, truth, eager, this bundle on {backend}, changed pixels.",
        "",
    ]
    lines += [f"![{w.name}: agreement {w.agreement:.4f}]({w.file})" for w in worst]
    return "\n".join(lines)


def _sqnr_section(sqnr: Sequence[float | None]) -> str:
    cells = ["equal" if v is None else f"{v:.1f}" for v in sqnr]
    return "\n".join(
        [
            "## Signal to noise per block (dB, block output against float)",
            "",
            "| " + " | ".join(str(i) for i in range(len(cells))) + " |",
            "|" + "---:|" * len(cells),
            "| " + " | ".join(cells) + " |",
        ]
    )


def _search_section(found: SearchResult, drawn: bool) -> str:
    lines = [
        f"## Precision search (budget {found.max_drop:g} M_J points, {found.frames} frames of "
        f"{found.data}, {found.backend})",
        "",
        f"| | M_J | M_F | agreement | expected {found.cost_unit} |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, score, cost in (
        ("eager", found.eager, ""),
        ("all quantized", found.full, f"{found.cost['quantized']:.4g}"),
        ("chosen", found.chosen, f"{found.expected:.4g}"),
    ):
        lines.append(
            f"| {name} | {score.m_j:.2f} | {score.m_f:.3f} | {score.agreement:.4f} | {cost} |"
        )
    saved = ", ".join(f"{b} {saved:.3g} {found.cost_unit}" for b, saved in found.saved.items())
    kept = ", ".join(found.float_units) or "none"
    lines += ["", f"A quantized branch saves: {saved}. In float: {kept}."]
    if found.slower:
        lines += [f"INT8 is not faster here in {', '.join(found.slower)}: always in float."]
    lines += [f"{found.evaluations} evaluations, {found.reused} from earlier searches."]
    if drawn:
        lines += ["", "![one branch alone in INT8](sensitivity.png)"]
    hardest = sorted(found.sensitivity, key=lambda s: s.agreement)[:8]
    lines += ["", "| branch alone in INT8 | M_J points lost | agreement |", "|---|---:|---:|"]
    lines += [f"| {s.unit} | {s.m_j_drop:.3f} | {s.agreement:.5f} |" for s in hardest]
    return "\n".join(lines)
