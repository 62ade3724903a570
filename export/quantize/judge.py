"""What 8 bits gave: kernels that ran, speed against float, masks against eager; in words and files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import Arrays
from save_deploy.errors import BackendError
from save_deploy.export.golden import Golden
from save_deploy.export.options import ExportOptions
from save_deploy.export.prove import Entry, Proved
from save_deploy.export.quantize.block_error import block_sqnr
from save_deploy.export.quantize.picture import plot_sensitivity
from save_deploy.export.quantize.plan import QuantPlan
from save_deploy.export.quantize.search import SearchResult
from save_deploy.export.quantize.verdict import verdict, weakest_blocks
from save_deploy.metrics.margin import Margin, MarginMeter
from save_deploy.runtime.kernels import executed_kernels
from save_deploy.runtime.pictures import WorstFrame, write_worst
from save_deploy.runtime.session import available_backends, default_threads
from save_deploy.runtime.session.openvino import INSTALL

SHOWN = 4  # worst frames
SQNR_FRAMES = 4


@dataclass(frozen=True)
class Outcome:
    """manifest: its precision entry; report: for report.json; sections: for report.md; lines: for
    the terminal; why: for the error when it is over budget."""

    manifest: dict[str, Any]
    report: dict[str, Any]
    sections: tuple[str, ...]
    lines: tuple[str, ...]
    why: tuple[str, ...]


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
    shown = entries[-1].backend  # backends differ in a few pixels: whose these are is told
    meter = MarginMeter()
    meter.add(golden.mask_logits, proved.logits[-1])
    margin = meter.result()
    worst = write_worst(
        folder, golden.pairs.image, golden.pairs.truth, golden.mask_logits, proved.logits[-1],
        golden.pairs.names, k=SHOWN, got_label=f"{options.precision} {shown}",
    )  # fmt: skip
    sqnr = _sqnr(plan, proved, golden, folder, options)
    drawn = found is not None and plot_sensitivity(found, folder / "sensitivity.png")
    lines = verdict(proved, entries, kernels, sqnr, found, options)
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
        "margin": {"backend": shown, **asdict(margin)},
        "block_sqnr_db": sqnr,
        "worst_frames": [asdict(w) for w in worst],
        "search": found.to_dict() if found else None,
        "verdict": list(lines),
    }
    sections = [
        "## Verdict\n\n" + "\n".join(f"- {line}" for line in lines),
        _margin_section(margin, worst, shown),
    ]
    if sqnr:
        sections.append(_sqnr_section(sqnr))
    if found:
        sections.append(_search_section(found, drawn))
    why = tuple(line for line in (weakest_blocks(sqnr), *lines) if line)
    return Outcome(manifest, report, tuple(sections), lines, why)


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


def _short(found: SearchResult) -> dict[str, Any]:
    """What the manifest says of a search; all of it is in report.json."""
    keys = ("max_drop", "data", "clips", "frames", "backend", "eager", "full", "chosen")
    values = found.to_dict()
    return {key: values[key] for key in keys}


def _margin_section(margin: Margin, worst: list[WorstFrame], backend: str) -> str:
    lines = [
        f"## Threshold margin (masks of {backend})",
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
        f"Worst frames: picture, truth, eager, this bundle on {backend}, flips.",
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
    lines += ["", f"A quantized unit saves: {saved}. In float: {kept}."]
    if found.slower:
        lines += [f"8 bits are no faster here in {', '.join(found.slower)}: always in float."]
    lines += [f"{found.evaluations} evaluations, {found.reused} from earlier searches."]
    if drawn:
        lines += ["", "![one unit alone in 8 bits](sensitivity.png)"]
    hardest = sorted(found.sensitivity, key=lambda s: s.agreement)[:8]
    lines += ["", "| unit alone in 8 bits | M_J points lost | agreement |", "|---|---:|---:|"]
    lines += [f"| {s.unit} | {s.m_j_drop:.3f} | {s.agreement:.5f} |" for s in hardest]
    return "\n".join(lines)
