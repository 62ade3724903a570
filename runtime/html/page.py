"""Rendering of a report to report.html: values, charts and frames in one self-contained file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from save_deploy.files import write_bytes
from save_deploy.metrics.interval import Interval
from save_deploy.metrics.margin import LEVELS
from save_deploy.runtime.compare.rows import Row, others_values
from save_deploy.runtime.html import charts, frames, summary
from save_deploy.runtime.html.data import Figure, Report, Section, Table, picture_type
from save_deploy.runtime.html.summary import breakable
from save_deploy.runtime.pictures import MASK, TURNED_OFF, TURNED_ON

_Change = tuple[float, Interval | None] | None
_HERE = Path(__file__).parent
_NUMBER = re.compile(r"\s*([-+<>~]?\s*[\d.,]+(e[-+]?\d+)?\s*\S{0,4}|-?)\s*$")


def write_html(path: Path, report: Report) -> None:
    """Write the page. The same report gives the same bytes.

    Raises SaveDeployError for a report that cannot be shown and a file that cannot be written.
    """
    page = render(report).encode("utf-8", "replace")  # file names may hold lone surrogates
    write_bytes(path, page, what="the report")


def render(report: Report) -> str:
    """Return the page as text. Raises SaveDeployError for a report that cannot be shown."""
    report.check()
    ids = row_ids(report)
    script = "".join((_HERE / name).read_text() for name in ("page.js", "viewer.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "script_hash": digest,
        "title": escape(report.title),
        "heading": breakable(report.title),
        "origin": _origin(report),
        "note": escape(report.note),
        "protocol": escape(report.protocol),
        "style": (_HERE / "style.css").read_text(),
        "dataset_filter": _dataset_filter(report),
        "cards": summary.cards(report),
        "checks": summary.checks(report),
        "table": summary.table(report, ids),
        "meanings": _meanings(),
        "charts": _charts(report, ids),
        "viewer": _viewer(report),
        "sections": _sections(report.sections),
        "versions": _pairs(report.versions),
        "data": _json(values(report)),
        "frames": _json(_viewer_data(report)),
        "script": script,
    }
    template = (_HERE / "template.html").read_text()
    # one pass, so that slots inside of inserted text stay text
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], template)


def row_ids(report: Report) -> dict[str, int]:
    """Return row name -> color index: 0 is the reference, the others count from 1."""
    known = {row.name for row in report.rows if row.reference}
    others = [name for name in report.names if name not in known]
    return {**dict.fromkeys(known, 0), **{name: i for i, name in enumerate(others, start=1)}}


def values(report: Report) -> dict[str, Any]:
    """Return all values of the page and the raw samples: the JSON that the page offers."""
    return {
        "title": report.title,
        "made": report.made,
        "command": report.command,
        "bundles": dict(report.bundles),
        "note": report.note,
        "protocol": report.protocol,
        "verdict": report.verdict,
        "checks": [vars(check) for check in report.checks],
        "machine": dict(report.machine),
        "versions": dict(report.versions),
        "rows": [_row(report, row) for row in report.rows],
        "frames": [frames.summary(f) for f in frames.worst_first(report.frames)],
    }


def _row(report: Report, row: Row) -> dict[str, Any]:
    taken, change = row.latency, report.m_j_change(row)
    return {
        "name": row.name,
        "dataset": row.dataset,
        "reference": row.reference,
        "size_mb": row.size_mb,
        "peak_memory_mib": row.peak_memory_mib,
        "batch": taken.batch,
        **{f"p{q}_ms": taken.percentile(q) for q in (50, 90, 99)},
        "samples_ms": [round(s, 3) for s in taken.samples_ms],
        "frames_per_s": taken.frames_per_s,
        "speedup": row.speedup,
        **others_values(taken),
        "time_split_ms": vars(row.time_split) if row.time_split else None,
        "score": vars(row.score),
        "m_j_change": change and {"points": change[0], "interval": change[1]},
        "parity": vars(row.parity) if row.parity else None,
        "margin": vars(row.margin) if row.margin else None,
    }


def _json(found: Any) -> str:
    """Return JSON that cannot end the script element that contains it."""
    text = json.dumps(found, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _viewer_data(report: Report) -> dict[str, Any]:
    return {
        "levels": LEVELS,
        "colors": {"mask": MASK, "on": TURNED_ON, "off": TURNED_OFF},
        "references": {
            d: base.name if (base := report.reference(d)) else "reference" for d in report.datasets
        },
        "frames": [frames.entry(f) for f in frames.worst_first(report.frames)],
    }


def _dataset_filter(report: Report) -> str:
    if len(report.datasets) == 1:
        return ""
    buttons = [("", "all datasets"), *((d, d) for d in report.datasets)]
    return '<div id="datasets"><div class="choice" role="group" aria-label="Dataset">' + "".join(
        f'<button type="button" data-choose="{escape(d)}" aria-pressed="{"false" if d else "true"}">'
        f"{escape(words)}</button>"
        for d, words in buttons
    ) + "</div></div>"  # fmt: skip


def _meanings() -> str:
    return "".join(f"<dt>{escape(c.title)}</dt><dd>{escape(c.means)}</dd>" for c in summary.COLUMNS)


def _origin(report: Report) -> str:
    """Return date, command, machine and hashes of the bundles, as far as they are known."""
    lines = [("made", escape(report.made)), ("command", f"<code>{escape(report.command)}</code>")]
    found = [(name, words) for name, words in lines if getattr(report, name)]
    machine = f'<dl class="flow">{_pairs(report.machine)}</dl>'
    found += [("machine", machine)] if report.machine else []
    found += [
        (breakable(name), f'<code title="{digest}">sha256 {digest[:16]}</code>')
        for name, digest in ((n, escape(d)) for n, d in report.bundles.items())
    ]
    return "".join(f"<dt>{name}</dt><dd>{words}</dd>" for name, words in found)


def _charts(report: Report, ids: dict[str, int]) -> str:
    """Return latency and the change of M_J; folded: where the time goes, the change of M_F."""
    rows, ids = _timed(report, ids)
    n = sorted({len(row.latency.samples_ms) for row in rows})
    counted = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    untimed = [row.name for row in rows if row.time_split is None]
    latency = _chart(
        "Latency",
        f"A dot is one call ({counted} a row), the box holds the middle half; thick, thin and "
        "dashed marks: p50 · p90 · p99 in ms. Further left is better.",
        charts.latency(rows, ids),
    )
    split = _chart(
        "Where the time goes",
        "Median of each part. " + _legend(),
        charts.time_split(rows, ids)
        + (f'<p class="small">Not timed: {escape(", ".join(untimed))}.</p>' if untimed else ""),
    )
    names = "".join(f"<li>{summary.key(ids[r.name])}{breakable(r.name)}</li>" for r in rows)
    first, more = [latency], [split]
    if any(report.reference(dataset) for dataset in report.datasets):
        first.append(_accuracy(report, ids, "M_J", "Points", report.m_j_change))
        more.append(_accuracy(report, ids, "M_F", "0 to 1", report.m_f_change))
    return (
        f'<ul class="names">{names}</ul><div class="charts">{"".join(first)}</div>'
        "<details><summary>More charts: where the time goes"
        f"{', M_F change' if more[1:] else ''}</summary>"
        f'<div class="charts">{"".join(more)}</div></details>'
    )


def _timed(report: Report, ids: dict[str, int]) -> tuple[list[Row], dict[str, int]]:
    """Return every timing once, and the colors by name: datasets share timings, unless their
    references differ."""
    unique = {(row.name, row.latency.samples_ms): row for row in reversed(report.rows)}
    rows = list(reversed(unique.values()))
    names = [row.name for row in rows]
    shown = [
        replace(r, name=f"{r.name} on {r.dataset}") if names.count(r.name) > 1 else r for r in rows
    ]
    return shown, {**ids, **{new.name: ids[r.name] for new, r in zip(shown, rows, strict=True)}}


def _accuracy(
    report: Report, ids: dict[str, int], name: str, unit: str, change: Callable[[Row], _Change]
) -> str:
    """Return one panel with the change of a score against the reference, a chart per dataset."""

    def value(row: Row) -> tuple[float, Interval]:
        mean, interval = change(row) or (0.0, None)
        return mean, interval or (mean, mean)

    drawn = []
    for dataset in filter(report.reference, report.datasets):
        rows = [row for row in report.rows if row.dataset == dataset]
        where = f"<figcaption>{breakable(dataset)}</figcaption>" * (len(report.datasets) > 1)
        chart = charts.accuracy(rows, ids, value, f"{name} change")
        drawn.append(f'<figure data-dataset="{escape(dataset)}">{where}{chart}</figure>')
    caption = f"{unit}, against speed; 95 % interval of the differences by video."
    return (
        f'<div class="panel"><h4>{name} change</h4><p class="small">{caption}</p>'
        f'<div class="small-ones">{"".join(drawn)}</div></div>'
    )


def _legend() -> str:
    return "".join(f'<span class="part-key {part}">{part}</span> ' for part in charts.PARTS)


def _chart(title: str, caption: str, drawing: str) -> str:
    return (
        f'<figure class="panel"><figcaption><h4>{title}</h4><p class="small">{caption}</p>'
        f"</figcaption>{drawing}</figure>"
    )


def _viewer(report: Report) -> str:
    if not report.frames:
        return '<p class="panel empty">No frames were kept for this report.</p>'
    shrunk = any(frames.display_size(f.reference.shape) != f.reference.shape for f in report.frames)
    note = (
        f"Frames are shrunk to {frames.MAX_SIDE} px for display; every number is of full size."
        if shrunk
        else "Frames are shown at the network's size."
    )
    return (_HERE / "viewer.html").read_text().replace("{{size_note}}", note)


def _sections(sections: tuple[Section, ...]) -> str:
    """Return texts as they are; tables and pictures folded, together where they are many."""
    texts = [_section(s) for s in sections if isinstance(s.body, str)]
    folded = [_section(s) for s in sections if not isinstance(s.body, str)]
    if len(folded) > 2:
        words = f"Tables of the bundles: merge, precision, engines ({len(folded)})"
        folded = [f"<details><summary>{words}</summary><div>{''.join(folded)}</div></details>"]
    return "".join(texts + folded)


def _section(section: Section) -> str:
    body = section.body
    if isinstance(body, Table):
        found = _table(section.title, body)
    elif isinstance(body, Figure):
        # inside an image element an SVG cannot run scripts or load files
        data = f"data:{picture_type(body.data)};base64,{base64.b64encode(body.data).decode()}"
        found = f'<img class="picture" src="{data}" alt="{escape(body.alt)}">'
    else:
        parts = [part for part in re.split(r"\n\s*\n", body) if part.strip()]
        found = "".join(f"<p>{escape(part.strip())}</p>" for part in parts)
        return f'<section class="panel"><h3>{breakable(section.title)}</h3>{found}</section>'
    title = f"<summary><h3>{breakable(section.title)}</h3></summary>"
    return f'<details class="panel">{title}{found}</details>'


def _table(title: str, body: Table) -> str:
    """Return a table with numbers aligned right and text left."""
    styles = [
        ' class="number"' if all(_NUMBER.match(row[i]) for row in body.rows) else ""
        for i in range(len(body.columns))
    ]
    cells = lambda tag, row: "".join(
        f"<{tag}{style}>{escape(words)}</{tag}>" for words, style in zip(row, styles, strict=True)
    )
    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in body.rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
        f"<table><thead><tr>{cells('th', body.columns)}</tr></thead><tbody>{lines}</tbody></table>"
        "</div>"
    )


def _pairs(found: Any) -> str:
    """Return names and values as pairs of a list; memory_gib 23.5 becomes "memory", "23.5 GiB"."""
    pairs = []
    for key, value in found.items():
        name, gib, _ = str(key).partition("_gib")
        words = f"{value} GiB" if gib else str(value)
        pairs.append(f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(words)}</dd>")
    return "".join(pairs)
