"""The four charts of the page as inline SVG: latency, accuracy against speed, time split."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import takewhile

from save_deploy.metrics.interval import Interval
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime.compare.rows import Row, TimeSplit
from save_deploy.runtime.html.svg import (
    NARROW,
    Scale,
    color,
    line,
    mark,
    number,
    padded,
    picture,
    rect,
    responsive,
    text,
)

MAX_DOTS = 250  # samples drawn per row; percentiles are of all samples
_LOG_ABOVE = 6.0  # the axis is logarithmic from this ratio of the slowest to the fastest median
_FAR = 2.0  # samples beyond this multiple of the largest p90 are counted at the end of the axis
PARTS = ("preprocess", "audio", "model", "postprocess")

Ids = Mapping[str, int]  # row name -> color


def latency(rows: Sequence[Row], ids: Ids) -> str:
    """Draw every sample as a dot, quartiles as a box, and p50, p90, p99 as marks."""
    return responsive(lambda width: _latency(rows, ids, width))


def _latency(rows: Sequence[Row], ids: Ids, width: int) -> str:
    lane, top, left, right = 41, 4, 8, width - 8
    bottom = top + lane * len(rows)
    everything = [s for row in rows for s in row.latency.samples_ms]
    medians = [row.latency.p50_ms for row in rows]
    log = max(medians) > _LOG_ABOVE * min(medians)
    low = min(everything) * 0.9 if log else 0.0
    usual = _FAR * max(row.latency.percentile(90) for row in rows)
    x = Scale(low, min(max(everything) * 1.04, usual), left, right, log)
    body = _x_axis(x, top, bottom, f"ms a call{', logarithmic' if log else ''}", width)
    values = [" · ".join(number(row.latency.percentile(q)) for q in (50, 90, 99)) for row in rows]
    names = labels([row.name for row in rows], right - left - 15 - 7 * max(map(len, values)))
    for i, row in enumerate(rows):
        body += _lane(row, (names[i], values[i]), ids[row.name], x, top + i * lane)
    words = "; ".join(f"{r.name} median {number(r.latency.p50_ms)} ms" for r in rows)
    return picture(width, bottom + 38, f"Latency of each row: {words}", body)


def _lane(row: Row, texts: tuple[str, str], index: int, x: Scale, top: float) -> list[str]:
    """texts: name and values."""
    taken, tone = row.latency, color(index)
    middle, half = top + 31, 9
    p50, p90, p99 = (taken.percentile(q) for q in (50, 90, 99))
    quartiles = x(taken.percentile(25)), x(taken.percentile(75))
    body = [
        mark(x.start + 5, top + 11, index, 4.5),
        text(x.start + 15, top + 15, texts[0]),
        text(x.end, top + 15, texts[1], anchor="end", style="value"),
        f"<g><title>{number(p50)} ms median, {number(p90)} ms p90, {number(p99)} ms p99, "
        f"{len(taken.samples_ms)} samples</title>",
        rect(quartiles[0], middle - half, quartiles[1] - quartiles[0], 2 * half, f"box {tone}"),
    ]
    body += [
        f'<circle cx="{x(s):.1f}" cy="{middle + half * 0.8 * _jitter(i):.1f}" r="2" '
        f'class="dot {tone}"/>'
        for i, s in shown_samples(taken)
        if s <= x.high
    ]
    body.append(line(x(p50), middle - half - 2, x(p50), middle + half + 2, f"median {tone}"))
    for at, style in ((p90, "p90"), (p99, "p99")):
        if at <= x.high:
            body.append(line(x(at), middle - half, x(at), middle + half, f"tail {style} {tone}"))
    if beyond := sum(s > x.high for s in taken.samples_ms):
        body.append(text(x.end, middle + 4, f"{beyond} beyond \u203a", anchor="end", style="value"))
    return [*body, "</g>"]


def shown_samples(taken: LatencyResult) -> list[tuple[int, float]]:
    """Return (index, ms) of all samples, or of evenly spaced ones with minimum and maximum."""
    ordered = list(enumerate(sorted(taken.samples_ms)))
    if len(ordered) <= MAX_DOTS:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (MAX_DOTS - 1))] for i in range(MAX_DOTS)]


def _jitter(i: int) -> float:
    """Return a fixed number in -1..1 for every i that differs much between neighbors."""
    return 2 * ((i * 0.618034 + 0.5) % 1) - 1


def accuracy(
    rows: Sequence[Row],
    ids: Ids,
    value: Callable[[Row], tuple[float, Interval]],
    name: str,
) -> str:
    """Draw value(row) -> (mean, 95 % interval) against frames per second; upper right is best."""
    width = NARROW
    left, right, top, bottom = 52, width - 10, 10, 130
    found = [value(row) for row in rows]
    speeds = [row.latency.frames_per_s for row in rows]
    log = max(speeds) > _LOG_ABOVE * min(speeds)
    low, high = (min(speeds) * 0.8, max(speeds) * 1.25) if log else padded([0.0, max(speeds)], 0.1)
    x = Scale(low if log else 0.0, high, left, right, log)
    y = Scale(*padded([v for _, (a, b) in found for v in (a, b)], least=1e-3), bottom, top)
    body = _x_axis(x, top, bottom, f"frames a second{', logarithmic' if log else ''}", width)
    for tick in y.ticks(4):
        body += [
            line(left, y(tick), right, y(tick), "grid"),
            text(left - 6, y(tick) + 4, number(tick), anchor="end", style="tick"),
        ]
    if y.low < 0 < y.high:
        body.append(line(left, y(0), right, y(0), "axis"))
    for row, speed, (mean, (lower, upper)) in zip(rows, speeds, found, strict=True):
        index, px = ids[row.name], x(speed)
        title = f"{row.name}: {name} {number(mean)}, {number(speed)} frames a second"
        body += [
            f"<g><title>{escape(title)}</title>",
            line(px, y(lower), px, y(upper), f"whisker {color(index)}"),
            line(px - 4, y(lower), px + 4, y(lower), f"whisker {color(index)}"),
            line(px - 4, y(upper), px + 4, y(upper), f"whisker {color(index)}"),
            mark(px, y(mean), index),
            "</g>",
        ]
    words = "; ".join(f"{r.name} {number(v)}" for r, (v, _) in zip(rows, found, strict=True))
    return picture(width, bottom + 38, f"{name} against speed: {words}", body)


def time_split(rows: Sequence[Row], ids: Ids) -> str:
    """Draw stacked bars for each row with a time split, "" when no row has one."""
    split = [(row, row.time_split) for row in rows if row.time_split is not None]
    return responsive(lambda width: _time_split(split, ids, width)) if split else ""


def _time_split(rows: Sequence[tuple[Row, TimeSplit]], ids: Ids, width: int) -> str:
    lane, top, left, right = 41, 4, 8, width - 8
    bottom = top + lane * len(rows)
    total = lambda split: sum(getattr(split, part) for part in PARTS)
    x = Scale(0.0, max(max(total(s) for _, s in rows), 1e-6) * 1.02, left, right)
    body = _x_axis(x, top, bottom, "ms a call", width)
    names = labels([row.name for row, _ in rows], right - left - 90)
    for i, (row, split) in enumerate(rows):
        y, at = top + i * lane, 0.0
        body += [
            mark(left + 5, y + 11, ids[row.name], 4.5),
            text(left + 15, y + 15, names[i]),
            text(right, y + 15, f"{number(total(split))} ms", anchor="end", style="value"),
        ]
        for part in PARTS:
            ms = getattr(split, part)
            title = f"{row.name}: {part} {number(ms)} ms"
            body.append(rect(x(at), y + 21, x(at + ms) - x(at), 18, f"part {part}", title))
            at += ms
    words = "; ".join(f"{row.name} {number(total(s))} ms" for row, s in rows)
    return picture(width, bottom + 38, f"Where the time goes: {words}", body)


def _x_axis(x: Scale, top: float, bottom: float, name: str, width: int) -> list[str]:
    body = []
    for tick in x.ticks(4 if width < 400 else 6):
        body += [
            line(x(tick), top, x(tick), bottom, "grid"),
            text(x(tick), bottom + 15, number(tick), anchor="middle", style="tick"),
        ]
    body.append(line(x.start, bottom, x.end, bottom, "axis"))
    return [*body, text(x.end, bottom + 32, name, anchor="end", style="tick")]


def labels(names: Sequence[str], px: float) -> list[str]:
    """Shorten names to about `px` of 12 px type; different names stay different.

    Where one is too long, what it and others begin with is left out up to a separator, of all of them.
    """
    room = max(6, int(px / 6.6))
    long = [name for name in names if len(name) > room]
    first = re.split(r"[ _/.\-]", long[0])[0] if long else ""
    alike = [name for name in names if long and name.startswith(first)]
    same = "".join(c[0] for c in takewhile(lambda c: len(set(c)) == 1, zip(*alike, strict=False)))
    cut = max((m.start() for m in re.finditer(r"[ _/.\-]", same)), default=0)
    if len(set(alike)) == 1:
        cut = 0
    found = [shorten(f"…{name[cut:]}" if cut and name in alike else name, px) for name in names]
    return [
        f"{i} {shorten(label, px - 20)}" if found.count(label) > 1 else label
        for i, label in enumerate(found, start=1)
    ]


def shorten(words: str, px: float) -> str:
    """Cut the middle of a text to about `px` of 12 px type."""
    room = max(6, int(px / 6.6))
    if len(words) <= room:
        return words
    return f"{words[: room - room // 2 - 1]}…{words[len(words) - room // 2 :]}"
