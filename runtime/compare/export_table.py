"""Comparison of one export: table on the terminal, report.json and report.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from save_deploy.machine import describe as machine
from save_deploy.machine import peak_memory_mib, versions
from save_deploy.runtime.compare.rows import Row, row_values
from save_deploy.runtime.compare.table import (
    EXPORT_COLUMNS,
    log_console,
    markdown_table,
    noise_text,
    rich_table,
    table_of,
)

N_LEFT = 2  # backend and precision are words


def footnote(rows: Sequence[Row], data: str, *, interleaved: bool = True) -> str:
    """Return how and on which machine the rows were measured."""
    here, first = machine(), rows[0]
    watched = dict.fromkeys(r.latency.others.text for r in rows if r.latency.others)
    others = "; ".join(text for text in watched if text)
    how = "interleaved" if interleaved else "one after the other (too large to hold together)"
    return (
        f"{first.score.n_frames} frames of {data}; batch {first.latency.batch}, "
        f"rounds: {len(rows[-1].latency.samples_ms)}, {how}, "
        f"{noise_text(max(row.latency.spread for row in rows))}; "
        f"all on the CPU: {here['cpu']}, {here['cores']} cores" + (f"; {others}" if others else "")
    )


def print_table(rows: Sequence[Row], title: str, note: str) -> None:
    """Print the table to standard output, as plain text when it is not a terminal."""
    table = table_of(EXPORT_COLUMNS, rows)
    log_console().print(rich_table(table, n_left=N_LEFT, title=title, caption=note))


def write_report(
    folder: Path, rows: Sequence[Row], *, title: str, note: str, extra: dict[str, Any],
    sections: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write report.json (with raw samples) and report.md. sections: additional Markdown."""
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
    lines = [f"# {title}", "", *markdown_table(table_of(EXPORT_COLUMNS, rows), n_left=N_LEFT)]
    lines += ["", note, "", f"Metrics: {rows[0].score.protocol}.", ""]
    for section in sections:
        lines += [section, ""]
    (folder / "report.md").write_text("\n".join(lines))
