"""A comparison on the terminal: one table for each dataset, readable at 132 columns."""

from __future__ import annotations

from collections.abc import Sequence

from save_deploy.runtime.comparison.row import Row
from save_deploy.runtime.comparison.run import Comparison

WIDTH = 132
_NAME_WIDTH = 30
COLUMNS = (
    "", "size MB", "p50 ms", "p90", "p99", "FPS", "x eager", "M_J (95 %)", "M_F", "agree", "max err",
    "MiB",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """One row as text, in the order of COLUMNS."""
    low, high = row.score.m_j_interval
    parity, memory = row.parity, row.peak_memory_mib
    return [
        row.name,
        f"{row.size_mb:.1f}",
        *(f"{row.latency.percentile(q):.1f}" for q in (50, 90, 99)),
        f"{row.latency.frames_per_s:.3g}",
        f"{row.speedup:.2f}",
        f"{row.score.m_j:.2f} {low:.1f}..{high:.1f}",
        f"{row.score.m_f:.3f}",
        "ref." if parity is None else f"{parity.mask_agreement:.5f}",
        "ref." if parity is None else f"{parity.max_abs_err:.1e}",
        "" if memory is None else f"{memory:.0f}",
    ]


def columns(rows: Sequence[Row], *, eager: bool) -> list[tuple[int, str]]:
    """(index of its cell, title) of the columns that say something."""
    titles = list(COLUMNS)
    if not eager:
        titles[6] = "x ref."
    if all(row.peak_memory_mib is None for row in rows):
        titles.pop()
    return list(enumerate(titles))


def print_comparison(found: Comparison) -> None:
    """Tables, then how the numbers were taken, then the checks."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else WIDTH, highlight=False)
    shown = columns(found.rows, eager=found.options.eager)
    for dataset in dict.fromkeys(row.dataset for row in found.rows):
        table = Table(
            title=dataset, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for i, title in shown:
            width = {"max_width": _NAME_WIDTH, "overflow": "fold"} if not i else {"no_wrap": True}
            table.add_column(title, justify="right" if i else "left", **width)  # type: ignore[arg-type]
        for row in found.rows:
            if row.dataset == dataset:
                texts = cells(row)
                table.add_row(*(texts[i] for i, _ in shown))
        console.print(table)
    for line in found.notes:
        console.print(line, markup=False)
    for section in found.sections:
        if isinstance(section.body, str):
            console.print(section.body.replace("\n\n", "\n"), markup=False)
    for check in found.checks:
        word = "pass" if check.passed else "FAIL"
        console.print(f"{word}: {check.name} {check.got}, {check.allowed}", markup=False)
    for name, why in found.skipped.items():
        console.print(f"skipped {name}: {why}", markup=False)
