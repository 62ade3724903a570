"""Text tables of rows, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from save_deploy.runtime.compare.rows import Row
from save_deploy.runtime.html.data import Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

WIDTH = 132  # characters of a line in a log, where no width is known
NAME_WIDTH = 30
NOISY = 0.1  # spread of samples above which milliseconds of two runs cannot be compared


@dataclass(frozen=True)
class Column:
    """text(row): the cell, "" for what was not measured. row: a Row, or an Outcome of a benchmark.
    implied: what a note beside the table says where every cell is that."""

    title: str
    text: Callable[[Any], str]
    implied: str = ""


def _device_ms(row: Any) -> str:
    return "" if row.device_ms is None else f"{row.device_ms:.2f}"


# where each row ran, and what its CUDA events measured: without copies from and to the host
DEVICE = Column("device", lambda row: row.device, implied="cpu")
DEVICE_MS = Column("on device ms", _device_ms)


def table_of(columns: Sequence[Column], rows: Sequence[Any]) -> Table:
    """Return rows as text, without columns that are empty or only have the implied text."""
    cells = [[column.text(row) for row in rows] for column in columns]
    useful = [any(t != column.implied for t in c) for column, c in zip(columns, cells, strict=True)]
    shown = [i for i, texts in enumerate(cells) if any(texts) and useful[i]]
    return Table(
        tuple(columns[i].title for i in shown),
        tuple(tuple(cells[i][k] for i in shown) for k in range(len(rows))),
    )


def compare_columns(*, eager: bool) -> tuple[Column, ...]:
    """Return the columns of save-compare. eager False: the reference is the first entry."""
    return (
        Column("", lambda row: row.name),
        DEVICE,
        Column("size MB", lambda row: f"{row.size_mb:.1f}"),
        Column("p50 ms", _percentile(50)),
        Column("p90", _percentile(90)),
        Column("p99", _percentile(99)),
        DEVICE_MS,
        Column("FPS", lambda row: f"{row.latency.frames_per_s:.3g}"),
        Column("x eager" if eager else "x ref.", lambda row: row.speedup_text),
        Column("M_J (95 %)", _m_j_with_interval),
        Column("M_F", lambda row: f"{row.score.m_f:.3f}"),
        Column("agree", _agreement("ref.")),
        Column("max err", _max_err("ref.")),
        Column("MiB", _peak_memory),
    )


def _percentile(q: int) -> Callable[[Row], str]:
    return lambda row: f"{row.latency.percentile(q):.1f}"


def _m_j_with_interval(row: Row) -> str:
    low, high = row.score.m_j_interval
    return f"{row.score.m_j:.2f} {low:.1f}..{high:.1f}"


def _agreement(reference: str) -> Callable[[Row], str]:
    """reference: text in the row of the reference."""
    return lambda row: reference if row.parity is None else f"{row.parity.mask_agreement:.5f}"


def _max_err(reference: str) -> Callable[[Row], str]:
    return lambda row: reference if row.parity is None else f"{row.parity.max_abs_err:.1e}"


def _peak_memory(row: Row) -> str:
    return "" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}"


# columns of save-export
EXPORT_COLUMNS = (
    Column("backend", lambda row: row.backend),
    Column("precision", lambda row: row.precision),
    Column("size MB", lambda row: f"{row.size_mb:.1f}"),
    Column("p50 ms", _percentile(50)),
    Column("FPS", lambda row: f"{row.latency.frames_per_s:.3g}"),
    Column("x eager", lambda row: row.speedup_text),
    Column("M_J", lambda row: f"{row.score.m_j:.2f}"),
    Column("M_F", lambda row: f"{row.score.m_f:.3f}"),
    Column("mask agreement", _agreement("reference")),
    Column("max abs logit error", _max_err("reference")),
)


def noise_text(spread: float) -> str:
    """Return the noise as text. spread: interquartile range of the samples over their median."""
    warning = " (noisy: trust ratios, not milliseconds)" if spread > NOISY else ""
    return f"noise {spread:.0%}{warning}"


def markdown_table(table: Table, *, n_left: int = 1) -> list[str]:
    """Return the lines of a Markdown table; columns after the first n_left are aligned right."""
    align = ["---" if i < n_left else "---:" for i in range(len(table.columns))]
    return [_markdown_row(texts) for texts in (table.columns, align, *table.rows)]


def _markdown_row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(t.replace("|", r"\|").replace("\n", " ") for t in texts) + " |"


def log_console(width: int = WIDTH) -> Console:
    """Return a console with the terminal's width, or `width` in a log, without wrapped columns."""
    from save_deploy.console import new_console

    return new_console(width)


def rich_table(
    table: Table, *, n_left: int = 1, title: str = "", caption: str = "", compact: bool = False
) -> RichTable:
    """Return a table for the terminal. compact: no frame, and a long first column is folded."""
    from rich import box
    from rich.table import Table as RichTable

    made = RichTable(
        title=title or None,
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
    )
    if compact:
        made.box, made.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    for i, column in enumerate(table.columns):
        justify = "left" if i < n_left else "right"
        if compact and i == 0:
            made.add_column(column, justify="left", max_width=NAME_WIDTH, overflow="fold")
        else:
            made.add_column(column, justify=justify, no_wrap=compact)  # type: ignore[arg-type]
    for texts in table.rows:
        made.add_row(*texts)
    return made
