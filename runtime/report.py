"""The comparison as a table on the terminal, report.json and report.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from save_deploy.machine import describe as machine
from save_deploy.machine import peak_memory_mib, versions
from save_deploy.runtime.compare import Row

COLUMNS = (
    "backend",
    "precision",
    "size MB",
    "p50 ms",
    "FPS",
    "x eager",
    "M_J",
    "M_F",
    "mask agreement",
    "max abs logit error",
)


def cells(row: Row) -> list[str]:
    """One row as text, in the order of COLUMNS."""
    parity = row.parity
    return [
        row.backend,
        row.precision,
        f"{row.size_mb:.1f}",
        f"{row.latency.p50_ms:.1f}",
        f"{row.latency.frames_per_s:.3g}",
        f"{row.speedup:.2f}",
        f"{row.score.m_j:.2f}",
        f"{row.score.m_f:.3f}",
        "reference" if parity is None else f"{parity.mask_agreement:.5f}",
        "reference" if parity is None else f"{parity.max_abs_err:.1e}",
    ]


def footnote(rows: Sequence[Row], data: str, *, interleaved: bool = True) -> str:
    """What the numbers were taken on."""
    here, first = machine(), rows[0]
    worst = max(row.latency.spread for row in rows)
    how = "interleaved" if interleaved else "one after the other (too large to hold together)"
    noise = f"noise {worst:.0%}" + (
        " (noisy: trust ratios, not milliseconds)" if worst > 0.1 else ""
    )
    return (
        f"{first.score.n_frames} frames of {data}; batch {first.latency.batch}, "
        f"rounds: {len(rows[-1].latency.samples_ms)}, {how}, {noise}; "
        f"{here['cpu']}, {here['cores']} cores"
    )


def print_table(rows: Sequence[Row], title: str, note: str) -> None:
    """A rich table on standard output; plain text when it is not a terminal."""
    from rich.console import Console
    from rich.table import Table

    # every column on one line in a log too, where no width is known
    console = Console(width=None if Console().is_terminal else 132)
    table = Table(title=title, caption=note, title_justify="left", caption_justify="left")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i < 2 else "right")
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)


def write_report(
    folder: Path, rows: Sequence[Row], *, title: str, note: str, extra: dict[str, Any],
    sections: Sequence[str] = (),
) -> None:  # fmt: skip
    """report.json (raw samples included) and report.md, with further sections in Markdown."""
    values = {
        "title": title,
        "note": note,
        "metrics": rows[0].score.protocol,
        "machine": machine(),
        "versions": versions(),
        "peak_memory_mib": round(peak_memory_mib()),
        "rows": [row_values(row) for row in rows],
        **extra,
    }
    (folder / "report.json").write_text(json.dumps(values, indent=2) + "\n")
    lines = [f"# {title}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += ["", note, "", f"Metrics: {rows[0].score.protocol}.", ""]
    for section in sections:
        lines += [section, ""]
    (folder / "report.md").write_text("\n".join(lines))


def row_values(row: Row) -> dict[str, Any]:
    """A row as JSON, raw samples included; what was not measured is left out."""
    values = {k: v for k, v in asdict(row).items() if k == "parity" or v not in (None, "")}
    values["latency"] = {
        "p50_ms": row.latency.p50_ms,
        "p90_ms": row.latency.percentile(90),
        "p99_ms": row.latency.percentile(99),
        "samples_ms": [round(s, 3) for s in row.latency.samples_ms],
    }
    return values
