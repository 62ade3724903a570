"""Upper part of the page: cards, checks, and the sortable table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from save_deploy.metrics.interval import Interval
from save_deploy.metrics.latency import STEADY
from save_deploy.metrics.margin import LEVELS
from save_deploy.runtime.compare.rows import WITHHELD, Row
from save_deploy.runtime.html.data import Report
from save_deploy.runtime.html.svg import mark

NONE = "\N{EN DASH}"
_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Cell:
    """A table cell: text, smaller second line, and the number it is sorted by."""

    text: str
    small: str = ""
    value: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A column: title, explanation, and cell(report, row)."""

    title: str
    means: str
    cell: Callable[[Report, Row], Cell]


def cards(report: Report) -> str:
    """Return verdict, best speed-up, worst M_J, lowest agreement, smallest size."""
    ours = [row for row in report.rows if not row.reference]
    found = [_verdict_card(report)]
    if ours:
        found.append(_speed_card(report, ours))
    changes = [(change, row) for row in ours if (change := report.m_j_change(row)) is not None]
    if changes:
        (drop, interval), row = min(changes, key=lambda c: c[0][0])
        found.append(
            _card(
                "Worst M_J change",
                signed(drop),
                _where(report, row),
                _interval(interval, signed, "95 %: ") or "points",
            )
        )
    judged = [(row.parity.mask_agreement, row) for row in ours if row.parity is not None]
    if judged:
        agreement, row = min(judged, key=lambda c: c[0])
        found.append(
            _card("Lowest agreement", f"{agreement:.5f}", _where(report, row), "IoU of the masks")
        )
    if ours:
        small = min(ours, key=lambda row: row.size_mb)
        base = report.reference(small.dataset)
        share = f"{small.size_mb / base.size_mb:.0%} of {base.name}" if base else ""
        found.append(_card("Smallest", f"{small.size_mb:.1f} MB", small.name, share))
    return "".join(found)


def _speed_card(report: Report, ours: Sequence[Row]) -> str:
    title = "Best speed-up"
    judged = [(row.speedup, row) for row in ours if row.speedup is not None]
    if not judged:
        reasons = [row.latency.withheld for row in report.rows if row.latency.withheld]
        return _card(title, WITHHELD, *reasons[:1], style="unsure")
    speedup, best = max(judged, key=lambda item: item[0])
    return _card(
        title,
        f"{speedup:.2f}{_TIMES}",
        _where(report, best),
        f"{best.latency.p50_ms:.1f} ms, {best.latency.frames_per_s:.3g} frames/s",
        *([f"not steady, noise {report.noise:.0%}"] if report.noise > STEADY else []),
    )


def _verdict_card(report: Report) -> str:
    failed = sum(not check.passed for check in report.checks)
    words = {
        "pass": ("Pass", f"{len(report.checks)} of {len(report.checks)} checks within budget"),
        "fail": ("Fail", f"{failed} of {len(report.checks)} checks over budget"),
        "none": ("No budget", "nothing was required of these numbers"),
    }
    value, small = words[report.verdict]
    unsure = next((check.unsure for check in report.checks if check.unsure), "")
    if report.verdict == "pass" and unsure:  # no green for what another run may turn round
        return _card("Verdict", "Unsteady", small, f"speed: {unsure}", style="verdict unsure")
    return _card("Verdict", value, small, style=f"verdict {report.verdict}")


def _card(title: str, value: str, *small: str, style: str = "") -> str:
    lines = "".join(f'<p class="small">{breakable(words)}</p>' for words in small if words)
    return (
        f'<div class="card {style}"><h3>{escape(title)}</h3>'
        f'<p class="figure">{escape(value)}</p>{lines}</div>'
    )


def _where(report: Report, row: Row) -> str:
    return row.name if len(report.datasets) == 1 else f"{row.name} on {row.dataset}"


def checks(report: Report) -> str:
    """Return every budget with the value found, "" without budgets."""
    kinds = ["fail" if not c.passed else "unsure" if c.unsure else "pass" for c in report.checks]
    signs = {"fail": "✗", "unsure": "~", "pass": "✓"}
    lines = [
        f'<li class="{kind}"><b>{signs[kind]} {breakable(c.name)}</b> {breakable(c.got)} '
        f"<span>({escape('; '.join(filter(None, (c.allowed, c.unsure))))})</span></li>"
        for c, kind in zip(report.checks, kinds, strict=True)
    ]
    return f'<ul class="checks">{"".join(lines)}</ul>' if lines else ""


def breakable(words: str) -> str:
    """Return the text as HTML that may break after the separators of a name."""
    return re.sub(r"(?<=\w\w)([_/.,:\-])(?=\w\w)", r"\1<wbr>", escape(words))


def signed(value: float) -> str:
    """Format +0.12, -0.12 with a typographic minus, 0.00 without a sign."""
    shown = f"{abs(value):.2f}"
    return shown if shown == "0.00" else f"{_MINUS if value < 0 else '+'}{shown}"


def _interval(interval: Interval | None, form: Callable[[float], str], before: str = "") -> str:
    return "" if interval is None else f"{before}[{form(interval[0])}, {form(interval[1])}]"


def _change(report: Report, row: Row) -> Cell:
    found = report.m_j_change(row)
    if found is None:
        return Cell("reference" if row.reference else NONE)
    return Cell(signed(found[0]), _interval(found[1], signed), found[0])


def _agreement(report: Report, row: Row) -> Cell:
    if row.parity is None:
        return Cell("reference" if row.reference else NONE)
    return Cell(f"{row.parity.mask_agreement:.5f}", "", row.parity.mask_agreement)


def _margin(report: Report, row: Row) -> Cell:
    margin = row.margin
    if margin is None:
        return Cell(NONE)
    share = margin.flipped_near[str(LEVELS[-1])]
    small = f"{share:.0%} near 0" if margin.flipped else ""
    return Cell(f"{100 * margin.flipped:.4f} %", small, margin.flipped)


def _optional(value: float | None, form: str) -> Cell:
    return Cell(NONE) if value is None else Cell(format(value, form), "", value)


def _percentile(q: int) -> Callable[[Report, Row], Cell]:
    def cell(report: Report, row: Row) -> Cell:
        return Cell(f"{row.latency.percentile(q):.1f}", "", row.latency.percentile(q))

    return cell


COLUMNS = (
    Column("size MB", "Graphs and weights on disk.", lambda _, r: _optional(r.size_mb, ".1f")),
    Column(
        "peak MiB", "Largest resident memory.", lambda _, r: _optional(r.peak_memory_mib, ".0f")
    ),
    Column("p50 ms", "Median latency of one call.", _percentile(50)),
    Column("p90", "Nine calls of ten are faster.", _percentile(90)),
    Column("p99", "The slowest hundredth; of few samples, the slowest.", _percentile(99)),
    Column(
        "frames/s",
        "Frames of a call over its median.",
        lambda _, r: Cell(f"{r.latency.frames_per_s:.3g}", "", r.latency.frames_per_s),
    ),
    Column(
        f"{_TIMES} eager",
        "Median ratio of calls of the same round.",
        lambda _, r: Cell(r.speedup_text, "", r.speedup),
    ),
    Column(
        "M_J",
        "Mean overlap (IoU) of masks with the truth, percent.",
        lambda _, r: Cell(f"{r.score.m_j:.2f}", "", r.score.m_j),
    ),
    Column(
        "M_J change",
        "Against the reference, points; 95 % interval of the differences of the same videos.",
        _change,
    ),
    Column(
        "M_F",
        "F-measure of AVSBench, 0 to 1, precision weighted higher.",
        lambda _, r: Cell(f"{r.score.m_f:.3f}", "", r.score.m_f),
    ),
    Column("agreement", "IoU of its masks with the reference's, all pixels pooled.", _agreement),
    Column(
        "max error",
        "Largest difference of a logit.",
        lambda _, r: _optional(r.parity.max_abs_err if r.parity else None, ".1e"),
    ),
    Column(
        "flipped",
        "Pixels on the other side of the threshold; near 0: those among them where the reference's "
        f"|logit| is below {LEVELS[-1]:g}, a coin toss of the model.",
        _margin,
    ),
)


def table(report: Report, ids: dict[str, int]) -> str:
    """Return all rows as a table whose header cells are sort buttons."""
    several = len(report.datasets) > 1
    head = [_header("row", "Backend, precision and bundle.")]
    cells = {c.title: [c.cell(report, row) for row in report.rows] for c in COLUMNS}
    # a column that was not measured for any row is left out
    shown = [c for c in COLUMNS if any(cell.value is not None for cell in cells[c.title])]
    head += [_header(c.title, c.means) for c in shown]
    lines = []
    for i, row in enumerate(report.rows):
        small = f"<small>{breakable(row.dataset)}</small>" if several else ""
        found = [
            f'<th scope="row">{key(ids[row.name])}<span>{breakable(row.name)}{small}</span></th>'
        ]
        found += [_td(cells[c.title][i]) for c in shown]
        lines.append(f'<tr data-dataset="{escape(row.dataset)}">{"".join(found)}</tr>')
    return f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(lines)}</tbody>"


def key(index: int) -> str:
    """Return the mark of a row in the charts."""
    return f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{mark(7, 7, index)}</svg>'


def _header(title: str, means: str) -> str:
    return (
        f'<th scope="col" title="{escape(means)}"><button type="button">{escape(title)}</button>'
        "</th>"
    )


def _td(cell: Cell) -> str:
    value = f' data-value="{cell.value!r}"' if cell.value is not None else ""
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    return f"<td{value}>{escape(cell.text)}{small}</td>"
