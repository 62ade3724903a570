"""The parts of report.html: frames as the viewer reads them, scales, colors."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from save_deploy.runtime.html import ReportFrame
from save_deploy.runtime.html.charts import MAX_DOTS, latency, shorten, shown_samples
from save_deploy.runtime.html.frames import (
    MAX_SIDE,
    compared,
    display_size,
    entry,
    level_dbfs,
    near,
    runs,
    worst_first,
)
from save_deploy.runtime.html.summary import signed
from save_deploy.runtime.html.svg import Scale, linear_ticks, number
from tests.runtime.html_samples import sample_report, tone, unpack

# ---- frames


def test_runs_come_back() -> None:
    rng = np.random.default_rng(0)
    for values in (
        rng.integers(0, 4, (37, 41)),
        np.zeros((300, 300), np.uint8),  # one run of more than 14 bits
        np.ones((1, 1), bool),
    ):
        np.testing.assert_array_equal(unpack(runs(values), values.size), values.ravel())


def test_near_levels() -> None:
    logits = np.array([[0.0, -0.05, 0.3, -0.9, 1.0, -5.0]], np.float32)
    np.testing.assert_array_equal(near(logits), [[3, 3, 2, 1, 0, 0]])


def test_compared() -> None:
    eager = np.zeros((4, 4), bool)
    eager[:2] = True  # 8 pixels
    ours = np.zeros((4, 4), bool)
    ours[1:3] = True  # 4 of them and 4 others
    frame = ReportFrame("f", "d", np.zeros((4, 4, 3), np.uint8), eager, {"a": ours}, truth=ours)
    found = compared(frame)["a"]
    assert (found.agreement, found.on, found.off) == (4 / 12, 4, 4)
    assert found.iou == pytest.approx(1)
    empty = replace(frame, reference=~eager & eager, masks={"a": ~eager & eager}, truth=None)
    assert compared(empty)["a"].agreement == 1 and compared(empty)["a"].iou is None


def test_worst_first() -> None:
    frames = sample_report(n_clips=2).frames
    lowest = [min(c.agreement for c in compared(f).values()) for f in worst_first(frames)]
    assert lowest == sorted(lowest) and lowest[0] < lowest[-1]
    assert worst_first(frames[::-1]) != list(frames[::-1])


def test_display_size() -> None:
    assert display_size((256, 256)) == (256, 256)
    assert display_size((1024, 1024)) == (512, 512)
    assert display_size((1080, 1920)) == (288, 512)


def test_shrunk_frame_keeps_every_flip() -> None:
    """At 1024 px a flipped pixel between the sampled ones is still drawn; numbers stay full size."""
    side = 2 * MAX_SIDE
    eager = np.zeros((side, side), bool)
    ours = eager.copy()
    ours[0, 0] = ours[101, 333] = True
    frame = ReportFrame("f", "d", np.zeros((side, side, 3), np.uint8), eager, {"a": ours})
    found = entry(frame)
    shown = unpack(found["rows"]["a"]["flips"], MAX_SIDE**2).reshape(MAX_SIDE, MAX_SIDE)
    assert shown.sum() == 2 and shown[0, 0] == shown[50, 166] == 1
    assert found["rows"]["a"]["on"] == 2
    assert Image.open(io.BytesIO(base64.b64decode(found["jpeg"]))).size == (MAX_SIDE, MAX_SIDE)


def test_level() -> None:
    # a sine of half the range: 0.5 / sqrt(2) of full scale
    assert level_dbfs(tone(0.5)) == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=1e-3)
    assert level_dbfs(np.zeros(16000, np.float32)) is None
    assert level_dbfs(np.zeros(0, np.float32)) is None


# ---- charts


def test_scale() -> None:
    assert Scale(0, 10, 100, 200)(2.5) == 125
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)
    assert Scale(1, 100, 0, 200, log=True).ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert linear_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert [number(v) for v in (0, 1234.5, 64.21, 6.4, 0.064)] == [
        "0",
        "1234",
        "64.2",
        "6.4",
        "0.064",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.124, "+0.12"), (-0.126, "\N{MINUS SIGN}0.13"), (-0.004, "0.00")]
)
def test_sign_of_a_difference(value: float, text: str) -> None:
    assert signed(value) == text


def test_dots_of_many_samples_keep_both_ends() -> None:
    report = sample_report()
    taken = replace(report.rows[0].latency, samples_ms=tuple(map(float, range(1000, 0, -1))))
    shown = [ms for _, ms in shown_samples(taken)]
    assert (len(shown), shown[0], shown[-1]) == (MAX_DOTS, 1, 1000)
    # 80 px hold 12 letters of 6.6 px
    assert shorten("a_very_long_name_of_a_bundle", 80) == "a_ver…bundle"


def test_colors_can_be_read() -> None:
    """Text has a contrast of 4.5 (WCAG AA) on both grounds, marks 3, in both themes."""
    css = (Path(__file__).parents[2] / "runtime/html/style.css").read_text()
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w+, #\w+)\)", css))
    for theme in (0, 1):
        color = {name: value.split(", ")[theme] for name, value in pairs.items()}
        for ground in (color["bg"], color["panel"]):
            for name in ("ink", "soft", "accent", "good", "bad"):
                assert contrast(color[name], ground) >= 4.5, name
            for name in (f"c{i}" for i in range(9)):
                assert contrast(color[name], ground) >= 3, name
    assert contrast("#000", "#fff") == pytest.approx(21) and contrast("#777", "#888") < 2


def contrast(a: str, b: str) -> float:
    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
        values = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_one_far_sample_does_not_squeeze_the_chart() -> None:
    """It is counted at the end of the axis; the others keep their room."""
    rows = list(sample_report().rows)
    first = rows[0]
    assert "beyond" not in latency(rows, {row.name: i for i, row in enumerate(rows)})
    usual = 20 * first.latency.samples_ms  # so many that the far one is above p90
    slow = replace(first.latency, samples_ms=(*usual, 100 * first.latency.p50_ms))
    rows = [replace(first, latency=slow), *rows[1:]]
    drawn = latency(rows, {row.name: i for i, row in enumerate(rows)})
    assert "1 beyond" in drawn
