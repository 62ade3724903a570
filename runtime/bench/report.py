"""Report of a benchmark: a table, bench.json with raw samples, and a plot of the latencies."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from save_deploy.machine import describe as machine
from save_deploy.machine import read_nvidia, versions
from save_deploy.metrics.latency import LatencyResult, speedup
from save_deploy.partials import replaced_files
from save_deploy.runtime.bench.options import RESULTS
from save_deploy.runtime.bench.run import BenchResult, Outcome
from save_deploy.runtime.bench.yardsticks import gflops
from save_deploy.runtime.compare.rows import WITHHELD
from save_deploy.runtime.compare.table import (
    DEVICE,
    DEVICE_MS,
    Column,
    log_console,
    markdown_table,
    noise_text,
    rich_table,
    table_of,
)
from save_deploy.runtime.html.data import Table
from save_deploy.runtime.session import default_threads

N_LEFT = 2  # columns of words
WIDTH, WIDE = 150, 185  # line lengths in a log, without and with the device column
# what others are measured against, on which backend (None: their own)
REFERENCES = {"x eager": ("eager", "torch"), "x naive": ("naive", None)}
NAIVE_INT8 = {"x naive-int8": ("naive-int8", None)}  # a column only of runs that have it


def ratios(result: BenchResult, outcome: Outcome) -> dict[str, float | None]:
    """Return the speed-up over each reference, by column: medians over the same rounds."""

    def against(graph: str, backend: str) -> float | None:
        for other in result.outcomes:
            e = other.entry
            if (e.form, e.backend) == (graph, backend) and other.latency and outcome.latency:
                return speedup(other.latency, outcome.latency)
        return None

    own = outcome.entry.backend
    return {name: against(graph, at or own) for name, (graph, at) in _references(result).items()}


def _references(result: BenchResult) -> dict[str, tuple[str, str | None]]:
    has_int8 = any(o.entry.form == "naive-int8" for o in result.outcomes)
    return REFERENCES | (NAIVE_INT8 if has_int8 else {})


def table(result: BenchResult) -> Table:
    """Return a row per entry, without columns that have no values."""
    taken = lambda text: lambda o: "" if o.latency is None else text(o)
    number = lambda value, form: "" if value is None else format(value, form)
    percentile = lambda q: lambda o: f"{o.latency.percentile(q):.1f}"
    ratio = lambda value, form: WITHHELD if result.withheld else number(value, form)
    columns = [
        Column("entry", lambda o: o.entry.form),
        Column("backend", lambda o: o.entry.backend),
        DEVICE,
        Column("p50 ms", lambda o: percentile(50)(o) if o.latency else "failed"),
        Column("p90", taken(percentile(90))),
        Column("p99", taken(percentile(99))),
        DEVICE_MS,
        Column("FPS", taken(lambda o: f"{o.latency.frames_per_s:.3g}")),
        *(
            Column(name, taken(lambda o, name=name: ratio(ratios(result, o)[name], ".2f")))
            for name in _references(result)
        ),
        Column("of GEMM rate", taken(lambda o: ratio(_share(result, o), ".0%"))),
        Column("load s", taken(lambda o: f"{o.load_s:.2f}")),
        Column("first mask s", taken(lambda o: f"{o.first_mask_s:.2f}")),
        Column("peak MiB", taken(lambda o: f"{o.peak_mib:.0f}")),
        Column("logit error", taken(_logit_error)),
    ]
    return table_of(columns, result.outcomes)


def _logit_error(outcome: Outcome) -> str:
    if outcome.entry.form == "eager":
        return "reference"
    if outcome.max_rel_err is None:
        return ""
    return f"{outcome.max_rel_err:.0e}" if isfinite(outcome.max_rel_err) else "not finite"


def _share(result: BenchResult, outcome: Outcome) -> float | None:
    floor = result.floor_of(outcome.entry)
    if floor is None or outcome.latency is None or result.withheld:
        return None
    return floor / outcome.latency.p50_ms


def footnote(result: BenchResult) -> list[str]:
    """Return the machine and conditions of the measurement, and the lower bounds of the times."""
    here, subject = machine(), result.subject
    taken = [o.latency for o in result.outcomes if o.latency]
    noise = max((t.spread for t in taken), default=0.0)
    n = max((len(t.samples_ms) for t in taken), default=0)
    threads = subject.threads or default_threads()
    how = "all loaded at once" if result.resident else "loaded anew in every round, 2 calls each"
    lines = [result.others.text] if result.others and result.others.text else []
    lines += [
        f"{subject.name}, {subject.config.res} px, {subject.batch} frame(s) a call, one process each, "
        f"interleaved, {how}: {n} samples, {noise_text(noise)}",
        f"{'' if _on_gpu(result) else 'all on the CPU: '}{here['cpu']}, {threads} threads, "
        f"{here['memory_gib']} GiB; "
        + ", ".join(f"{k} {v}" for k, v in versions().items() if k in _SHOWN),
        f"GEMM rate {result.gemm_gflops:.0f} GFLOP/s (float32 {_GEMM}, same rounds, best of "
        + _rates(result.gemm)
        + f"); {subject.parameters / 1e6:.4g} M parameters, "
        f"{subject.macs_eager / 1e9:.4g} -> {subject.macs / 1e9:.4g} GMAC a call, "
        f"floor {result.floor_ms:.1f} ms",
    ]
    if _on_gpu(result):
        lines.append(
            f"GPU: {'; '.join(read_nvidia().lines()) or 'unknown'}; milliseconds are from host memory "
            f"to host memory, on device ms between CUDA events; the GEMM rate is that of "
            f"{result.gemm_device}, and rows of other devices or of 16 bits have no share of it"
        )
    if result.gemm_int8:
        lines.append(
            f"INT8 entries are measured against the same product in INT8 (best of "
            f"{_rates(result.gemm_int8)} GOP/s): floor {result.floor_int8_ms:.1f} ms, though a part of "
            "their work stays in float"
        )
    lines += [
        f"{o.entry.form} failed on {o.entry.backend}: {o.failed}"
        for o in result.outcomes
        if o.failed
    ]
    if any(o.entry.form == "int8" for o in result.outcomes):
        lines.append(
            "int8 here has min-max ranges without smoothing or bias correction: its time is a "
            "bundle's, its logit error is not"
        )
    if result.overhead_us:
        each = ", ".join(f"{b} {us:.0f} us" for b, us in result.overhead_us.items())
        lines.append(f"overhead of a call (graph that computes nothing): {each}")
    return lines


def _rates(gemm: dict[str, LatencyResult]) -> str:
    return ", ".join(f"{backend} {gflops(taken):.0f}" for backend, taken in gemm.items())


_SHOWN = ("torch", "onnxruntime-gpu", "onnxruntime", "openvino")
_GEMM = "2048 x 2048 x 2048"


def _on_gpu(result: BenchResult) -> bool:
    return any(o.device != "cpu" for o in result.outcomes)


def print_result(result: BenchResult) -> None:
    """Print table and footnotes to standard output."""
    title = "\n".join(footnote(result))
    log_console(WIDE if _on_gpu(result) else WIDTH).print(
        rich_table(table(result), n_left=N_LEFT, title=title)
    )


def write_result(result: BenchResult, folder: Path, command: str) -> list[Path]:
    """Write bench.json, bench.md and, with matplotlib, bench.png; return the written files."""
    subject = result.subject
    values: dict[str, Any] = {
        "command": command,
        "subject": {
            "name": subject.name,
            "res": subject.config.res,
            "batch": subject.batch,
            "parameters": subject.parameters,
            "macs_eager": subject.macs_eager,
            "macs": subject.macs,
        },
        "machine": machine(),
        "threads": subject.threads or default_threads(),
        "versions": versions(),
        "resident": result.resident,
        "others": None if result.others is None else asdict(result.others),
        "withheld": result.withheld or None,  # why there are no ratios
        "gemm": {b: {"gflops": gflops(g), **_latency(g)} for b, g in result.gemm.items()},
        "gemm_int8": {b: {"gops": gflops(g), **_latency(g)} for b, g in result.gemm_int8.items()},
        "floor_ms": result.floor_ms,
        "floor_int8_ms": result.floor_int8_ms,
        "overhead_us": result.overhead_us,
        "entries": [_entry(result, outcome) for outcome in result.outcomes],
    }
    lines = [f"`{command}`", "", *markdown_table(table(result), n_left=N_LEFT)]
    lines += ["", *(f"{line}  " for line in footnote(result)), ""]
    names = list(RESULTS)
    with replaced_files(folder, what="the report") as partial:
        (partial / names[0]).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (partial / names[1]).write_text("\n".join(lines), encoding="utf-8")
        if plot(result, partial / "bench.png"):
            names.append("bench.png")
    return [folder / name for name in names]


def plot(result: BenchResult, path: Path) -> bool:
    """Plot every sample as a dot, medians as bars, lower bounds as lines.

    False without matplotlib.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    shown = [(o, o.latency) for o in result.outcomes if o.latency]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.45 * len(shown)), layout="constrained")
    for row, (_, taken) in enumerate(shown):
        axes.barh(row, taken.p50_ms, height=0.6, color="#9ecae1")
        heights = [row + 0.2 * (i % 5 - 2) / 2 for i in range(len(taken.samples_ms))]
        axes.plot(taken.samples_ms, heights, ".", color="#08519c", markersize=4)
    axes.set_yticks(range(len(shown)), [o.entry.name for o, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("ms a call (bar: median, dots: samples)")
    floors = {"GEMM rate": (result.floor_ms, "--")}
    if result.floor_int8_ms is not None:
        floors["INT8 GEMM rate"] = (result.floor_int8_ms, ":")
    for rate, (ms, style) in floors.items():
        label = f"floor: useful work at the {rate}"
        axes.axvline(ms, color="#a50f15", linestyle=style, linewidth=1, label=label)
    axes.legend(loc="lower right", fontsize=8)
    subject = result.subject
    title = f"{subject.name}, {subject.config.res} px, {subject.batch} frame(s) a call"
    if result.withheld:
        title += f"\nNOT A RESULT: {result.withheld}"
    axes.set_title(title, fontsize=10, wrap=True, color="#a50f15" if result.withheld else "black")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _entry(result: BenchResult, outcome: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "graph": outcome.entry.form,
        "backend": outcome.entry.backend,
        "device": outcome.device,
    }
    if outcome.latency is None:
        return {**entry, "failed": outcome.failed}
    key = lambda column: column.replace(" ", "_").replace("-", "_")  # x naive-int8: x_naive_int8
    return {
        **entry,
        **_latency(outcome.latency),
        **{key(column): ratio for column, ratio in ratios(result, outcome).items()},
        "load_s": outcome.load_s,
        "first_mask_s": outcome.first_mask_s,
        "peak_mib": outcome.peak_mib,
        "max_rel_err": _finite(outcome.max_rel_err),
        "finite": outcome.max_rel_err is None or isfinite(outcome.max_rel_err),
        "device_ms": outcome.device_ms,
    }


def _finite(value: float | None) -> float | None:
    """Replace infinity, which JSON does not have."""
    return value if value is not None and isfinite(value) else None


def _latency(taken: LatencyResult) -> dict[str, Any]:
    return {
        **{f"p{q}_ms": taken.percentile(q) for q in (50, 90, 99)},
        "noise": taken.spread,
        "samples_ms": [round(s, 3) for s in taken.samples_ms],
    }
