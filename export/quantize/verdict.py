"""What 8 bits gave, in sentences: faster or not and why, masks against eager's, what is not known."""

from __future__ import annotations

from collections.abc import Sequence

from save_deploy.export.options import ExportOptions
from save_deploy.export.prove import Entry, Proved
from save_deploy.export.quantize.search import SearchResult
from save_deploy.machine import has_int8_dot_product
from save_deploy.metrics.latency import speedup, speedup_range
from save_deploy.runtime.compare import Row
from save_deploy.runtime.kernels import KernelCheck

SHOWN = 4  # kernels named in one line
WEAKEST = 3  # blocks named when masks are lost
FLOATS = ("fp32", "fp16")
FP8_NOTE = (
    "FP8 has no CPU kernels: times here are of an emulation. It is for NVIDIA GPUs from SM89 on."
)
NO_DOT_PRODUCT = "this CPU has no 8-bit dot product (VNNI or AMX)"
MAPPED = "ran with its weights mapped from the file for want of memory, which is slower"


def verdict(
    proved: Proved, entries: Sequence[Entry], kernels: Sequence[KernelCheck],
    sqnr: Sequence[float | None], found: SearchResult | None, options: ExportOptions,
) -> tuple[str, ...]:  # fmt: skip
    """Speed on each backend, then what was not measured, then accuracy."""
    return (
        *_speed(proved, entries, kernels, found, options),
        *_missing(proved, sqnr, options),
        _accuracy(proved.rows, found, options),
    )


def weakest_blocks(sqnr: Sequence[float | None]) -> str:
    """The blocks of least signal to noise, or empty. None stands for a block without any error."""
    measured = [(db, block) for block, db in enumerate(sqnr) if db is not None]
    shown = ", ".join(f"block {block} {db:.1f} dB" for db, block in sorted(measured)[:WEAKEST])
    return shown and f"least signal to noise: {shown}"


def _speed(
    proved: Proved, entries: Sequence[Entry], kernels: Sequence[KernelCheck],
    found: SearchResult | None, options: ExportOptions,
) -> list[str]:  # fmt: skip
    if options.quantized == "fp8":
        return [FP8_NOTE]
    if not kernels:
        return [_nothing(found)]
    mapped = {(e.backend, e.precision) for e in entries if e.low_memory}
    lines = []
    for check in kernels:
        here = [row for row in proved.rows if row.backend == check.backend]
        own = next(row for row in here if row.precision == options.precision)
        ran = f"{check.int8} of {check.asked} products ran 8-bit kernels"
        floats = [row for row in here if row.precision in FLOATS]
        if not floats:
            text = f"{own.speedup:.2f} x eager on {check.backend}; {ran}"
            lines.append(f"{text}; whether that is faster than float there was not measured")
            continue
        best = min(floats, key=lambda row: row.latency.p50_ms)
        line = _against(best, own, check, ran, interleaved=proved.interleaved)
        if (best.backend, best.precision) in mapped:
            line += f"; {best.precision} {MAPPED}"
        lines.append(line)
    return lines


def _against(best: Row, own: Row, check: KernelCheck, ran: str, *, interleaved: bool) -> str:
    """The best float graph of a backend. Faster or slower only where the quartiles say so."""
    low, high = speedup_range(best.latency, own.latency, interleaved=interleaved)
    if interleaved:
        ratio = speedup(best.latency, own.latency)
    else:
        ratio = best.latency.p50_ms / own.latency.p50_ms
    text = f"{ratio:.2f} x {best.precision} on {check.backend}, {own.speedup:.2f} x eager; {ran}"
    if high < 1:
        return f"NOT faster than {best.precision}: {text}; {_why_slow(check)}"
    if low <= 1:
        return (
            f"about as fast as {best.precision} ({low:.2f} to {high:.2f} x in the middle half of "
            f"the rounds): {text}; {_why_slow(check)}"
        )
    if check.not_int8:
        text += f" (in float: {', '.join(check.not_int8[:SHOWN])})"
    return text


def _nothing(found: SearchResult | None) -> str:
    """Why no product is in 8 bits."""
    if found is None:
        return "nothing is quantized, as in the bundle whose choice is repeated"
    reasons = []
    if found.slower:
        cpu = "" if has_int8_dot_product() else f"; {NO_DOT_PRODUCT}"
        reasons.append(f"8 bits make no {' or '.join(found.slower)} faster on {found.backend}{cpu}")
    if len(found.slower) < len(found.saved):
        of = "of the others " if found.slower else ""
        reasons.append(f"the budget of {found.max_drop:g} M_J points allows none {of}in 8 bits")
    text = f"nothing is quantized: {', and '.join(reasons)}"
    if found.slower:
        text += ". For an engine on another machine search with --search-cost work"
    return text


def _why_slow(check: KernelCheck) -> str:
    if check.not_int8:
        return f"ran in float: {', '.join(check.not_int8[:SHOWN])}"
    if not has_int8_dot_product():
        return NO_DOT_PRODUCT
    return "the graph is too small for 8-bit products to pay for their conversions"


def _missing(
    proved: Proved, sqnr: Sequence[float | None], options: ExportOptions
) -> tuple[str, ...]:
    measured = {(row.backend, row.precision) for row in proved.rows}
    backends = {b for b, precision in measured if precision == options.precision}
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
    return (
        f"{text}; search: M_J {found.eager.m_j:.2f} -> {found.chosen.m_j:.2f} on {found.frames} "
        f"frames of {found.data}, within the budget of {found.max_drop:g}, "
        f"{len(found.float_units)} of {found.units} units in float"
    )
