"""What 8 bits gave: kernels that ran, speed against float, masks against eager; in words and files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.errors import BackendError
from save_deploy.export.golden import Golden
from save_deploy.export.options import ExportOptions
from save_deploy.export.prove import Entry, Proved
from save_deploy.export.quantize.block_error import block_sqnr
from save_deploy.export.quantize.picture import plot_sensitivity
from save_deploy.export.quantize.plan import QuantPlan
from save_deploy.export.quantize.search import SearchResult
from save_deploy.metrics.latency import speedup
from save_deploy.metrics.margin import Margin, MarginMeter
from save_deploy.runtime.compare import Row
from save_deploy.runtime.kernels import KernelCheck, executed_kernels
from save_deploy.runtime.pictures import WorstFrame, write_worst
from save_deploy.runtime.session import available_backends, default_threads
from save_deploy.runtime.session.openvino import INSTALL
from save_deploy.specs import Arrays

SHOWN = 4  # worst frames, and blocks or kernels named in one line
SQNR_FRAMES = 4
FP8_NOTE = (
    "FP8 has no CPU kernels: times here are of an emulation. It is for NVIDIA GPUs from SM89 on."
)


@dataclass(frozen=True)
class Outcome:
    """manifest: its precision entry; report: for report.json; sections: for report.md; lines: for
    the terminal."""

    manifest: dict[str, Any]
    report: dict[str, Any]
    sections: tuple[str, ...]
    lines: tuple[str, ...]


def require_fp8_backend() -> list[str]:
    """Raises BackendError where nothing can run FP8 numbers."""
    if "openvino" in available_backends():
        return ["openvino"]
    raise BackendError(
        "an FP8 bundle cannot be proven here",
        got="no OpenVINO, and ONNX Runtime has no FP8 on a CPU",
        expected="a backend that computes with FP8 numbers",
        hint=f"{INSTALL}, or --int8",
    )


def judge(
    plan: QuantPlan, found: SearchResult | None, proved: Proved, entries: list[Entry],
    golden: Golden, nodes: tuple[str, ...], folder: Path, options: ExportOptions,
) -> Outcome:  # fmt: skip
    """The bundle's own graph is folder/model.onnx; the float one, for errors per block, fp32.onnx."""
    own = [e for e in entries if e.precision == options.precision]
    kernels = []
    if plan.fmt == "int8" and nodes:
        kernels = [
            executed_kernels(e.backend, e.path, nodes, proved.inputs, threads=options.threads)
            for e in own
        ]
    meter = MarginMeter()
    meter.add(golden.mask_logits, proved.logits[-1])
    margin = meter.result()
    worst = write_worst(
        folder, golden.pairs.image, golden.pairs.truth, golden.mask_logits, proved.logits[-1],
        golden.pairs.names, k=SHOWN, got_label=options.precision,
    )  # fmt: skip
    sqnr = _sqnr(plan, proved, golden, folder, options)
    drawn = found is not None and plot_sensitivity(found, folder / "sensitivity.png")
    lines = (
        *_speed_lines(proved.rows, kernels, options),
        _accuracy_line(proved.rows, found, options),
    )
    manifest = {
        "precision": options.precision,
        "quantization": {
            **plan.to_dict(),
            "kernels": {k.backend: {"asked": k.asked, "int8": k.int8} for k in kernels},
            "search": _short(found) if found else None,
        },
        **({"floats": plan.floats.to_dict()} if plan.floats else {}),
    }
    report = {
        "kernels": [k.to_dict() for k in kernels],
        "margin": asdict(margin),
        "block_sqnr_db": sqnr,
        "worst_frames": [asdict(w) for w in worst],
        "search": found.to_dict() if found else None,
        "verdict": list(lines),
    }
    sections = [
        "## Verdict\n\n" + "\n".join(f"- {line}" for line in lines),
        _margin_section(margin, worst),
    ]
    if sqnr:
        sections.append(_sqnr_section(sqnr))
    if found:
        sections.append(_search_section(found, drawn))
    return Outcome(manifest, report, tuple(sections), lines)


def _sqnr(
    plan: QuantPlan, proved: Proved, golden: Golden, folder: Path, options: ExportOptions
) -> list[float | None]:
    """None stands for a block without any error; empty when the float graph was too large to keep, or
    nothing here runs the format."""
    float_graph = folder / "fp32.onnx"
    if plan.fmt != "int8" or float_graph.with_name("fp32.onnx.data").exists():
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
        float_graph, folder / "model.onnx", inputs, 1 + max(p.block for p in plan.products),
        threads=options.threads or default_threads(),
    )  # fmt: skip
    return [round(v, 2) if np.isfinite(v) else None for v in found]


def _speed_lines(
    rows: list[Row], kernels: list[KernelCheck], options: ExportOptions
) -> tuple[str, ...]:
    if options.quantized == "fp8":
        return (FP8_NOTE,)
    lines = []
    for check in kernels:
        floats = [r for r in rows if r.backend == check.backend and r.precision in ("fp32", "fp16")]
        own = next(
            r for r in rows if r.backend == check.backend and r.precision == options.precision
        )
        ran = f"{check.int8} of {check.asked} products ran 8-bit kernels"
        if not floats:
            lines.append(f"{own.speedup:.2f} x eager on {check.backend}; {ran}")
            continue
        best = min(floats, key=lambda r: r.latency.p50_ms)
        ratio = speedup(best.latency, own.latency)
        text = (
            f"{ratio:.2f} x {best.precision} on {check.backend}, {own.speedup:.2f} x eager; {ran}"
        )
        if ratio <= 1:
            text = f"NOT faster than {best.precision}: {text}; {_why_slow(check)}"
        elif check.not_int8:
            text += f" (in float: {', '.join(check.not_int8[:SHOWN])})"
        lines.append(text)
    if not kernels:
        lines.append("nothing is quantized: the budget allows no product in 8 bits")
    return tuple(lines)


def _why_slow(check: KernelCheck) -> str:
    if check.not_int8:
        return f"ran in float: {', '.join(check.not_int8[:SHOWN])}"
    if not has_int8_dot_product():
        return "this CPU has no 8-bit dot product (VNNI or AMX)"
    return "the graph is too small for 8-bit products to pay for their conversions"


def has_int8_dot_product() -> bool:
    """Of the CPU, as Linux lists it; True where that cannot be read."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    return any(f in flags for f in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"))


def _accuracy_line(rows: list[Row], found: SearchResult | None, options: ExportOptions) -> str:
    own = [r for r in rows if r.precision == options.precision]
    worst = min(own, key=lambda r: r.parity.mask_agreement if r.parity else 1.0)
    assert worst.parity is not None
    text = (
        f"masks agree with eager's to {worst.parity.mask_agreement:.4f} (at least "
        f"{options.budget.min_agreement} asked), M_J {rows[0].score.m_j:.2f} -> "
        f"{worst.score.m_j:.2f} on {worst.score.n_frames} golden frames"
    )
    if found is None:
        return text
    lost = found.eager.m_j - found.chosen.m_j
    held = "within" if lost <= found.max_drop else "OVER"
    return (
        f"{text}; search: M_J {found.eager.m_j:.2f} -> {found.chosen.m_j:.2f} on {found.frames} "
        f"frames of {found.data}, {held} the budget of {found.max_drop:g}, "
        f"{len(found.float_units)} of {found.units} units in float"
    )


def _short(found: SearchResult) -> dict[str, Any]:
    """What the manifest says of a search; all of it is in report.json."""
    keys = ("max_drop", "data", "clips", "frames", "backend", "eager", "full", "chosen")
    values = found.to_dict()
    return {key: values[key] for key in keys}


def _margin_section(margin: Margin, worst: list[WorstFrame]) -> str:
    lines = [
        "## Threshold margin",
        "",
        "| pixels with eager's logit | of all | of the flipped |",
        "|---|---:|---:|",
    ]
    for level, share in margin.near.items():
        lines.append(
            f"| nearer to 0 than {level} | {share:.2%} | {margin.flipped_near[level]:.1%} |"
        )
    lines += [
        "",
        f"{margin.flipped:.3%} of {margin.pixels} pixels flipped: {margin.on} to sounding, "
        f"{margin.off} to silent.",
        "",
        "Worst frames: picture, truth, eager, this bundle, flips.",
        "",
    ]
    lines += [f"![{w.name}: agreement {w.agreement:.4f}]({w.file})" for w in worst]
    return "\n".join(lines)


def _sqnr_section(sqnr: list[float | None]) -> str:
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
        "| | M_J | M_F | agreement | expected ms |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, score, ms in (
        ("eager", found.eager, ""),
        ("all quantized", found.full, f"{found.p50_ms['quantized']:.1f}"),
        ("chosen", found.chosen, f"{found.expected_ms:.1f}"),
    ):
        lines.append(
            f"| {name} | {score.m_j:.2f} | {score.m_f:.3f} | {score.agreement:.4f} | {ms} |"
        )
    saved = ", ".join(f"{branch} {ms:.2f} ms" for branch, ms in found.saved_ms.items())
    kept = ", ".join(found.float_units) or "none"
    lines += ["", f"A quantized unit saves: {saved}. In float: {kept}."]
    lines += [f"{found.evaluations} evaluations, {found.reused} from earlier searches."]
    if drawn:
        lines += ["", "![one unit alone in 8 bits](sensitivity.png)"]
    hardest = sorted(found.sensitivity, key=lambda s: s.agreement)[:8]
    lines += ["", "| unit alone in 8 bits | M_J points lost | agreement |", "|---|---:|---:|"]
    lines += [f"| {s.unit} | {s.m_j_drop:.3f} | {s.agreement:.5f} |" for s in hardest]
    return "\n".join(lines)
