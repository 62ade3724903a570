"""report.html: what it says equals the data, it loads nothing, and what it refuses."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from save_deploy.errors import SaveDeployError
from save_deploy.runtime.html import Check, Figure, Report, Section, Table, write_html
from save_deploy.runtime.html.charts import labels
from tests.runtime.html_samples import (
    NASTY,
    SAMPLES,
    sample_report,
)

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}


class Page(html.parser.HTMLParser):
    """Elements, text and attributes of a page; every element must be closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(text.replace("<wbr>", ""))  # a place where a name may break
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            attributes = next(a for t, a in reversed(self.elements) if t == self.open[-1])
            name = attributes.get("id") or self.open[-1]
            self.scripts[name] = self.scripts.get(name, "") + data
        elif data.strip():
            self.texts.append(data.strip())


def written(report: Report, folder: Path) -> tuple[str, Page]:
    write_html(folder / "report.html", report)
    text = (folder / "report.html").read_text()
    return text, Page(text)


def data_of(page: Page) -> dict[str, Any]:
    return json.loads(page.scripts["data"])


# ---- the file


def test_same_report_same_bytes(tmp_path: Path) -> None:
    report = sample_report()
    write_html(tmp_path / "a.html", report)
    write_html(tmp_path / "b.html", report)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_loads_nothing(tmp_path: Path) -> None:
    text, page = written(sample_report(), tmp_path)
    for tag, attributes in page.elements:
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value}>"
    assert not re.search(r"https?://|@import|url\(", text)
    (policy,) = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_rows_frames_and_sections_are_there(tmp_path: Path) -> None:
    report = sample_report(datasets=("scenes", "stamps"))
    _, page = written(report, tmp_path)
    for row in report.rows:
        assert row.name in page.texts and row.dataset in page.texts
    for section in report.sections:
        assert section.title in page.texts
    assert {"conv + norm", "1e-14", "first", "second"} <= set(page.texts)
    shown = json.loads(page.scripts["frames"])["frames"]
    assert {f["name"] for f in shown} == {f.name for f in report.frames} and len(shown) == 8
    pictures = [a for t, a in page.elements if t == "img"]
    assert [a["alt"] for a in pictures] == ["a red pixel"]
    raw = base64.b64decode((pictures[0]["src"] or "").partition(",")[2])
    assert Image.open(io.BytesIO(raw)).getpixel((0, 0)) == (255, 0, 0)


def test_numbers_are_those_of_the_data(tmp_path: Path) -> None:
    report = sample_report()
    _, page = written(report, tmp_path)
    found = data_of(page)
    for row, shown in zip(report.rows, found["rows"], strict=True):
        assert shown["name"] == row.name and shown["score"]["m_j"] == row.score.m_j
        assert shown["samples_ms"] == [round(s, 3) for s in row.latency.samples_ms]
        assert f"{row.score.m_j:.2f}" in page.texts and f"{row.score.m_f:.3f}" in page.texts
        if row.parity is not None:
            assert f"{row.parity.mask_agreement:.5f}" in page.texts
            assert shown["parity"]["mask_agreement"] == row.parity.mask_agreement
    # nearest rank of 10, 30, 20, 50, 40 over 1.5: literal, not the code's own
    assert (found["rows"][0]["p50_ms"], found["rows"][0]["p90_ms"]) == (30, 50)
    assert {"20.0", "33.3", "1.50"} <= set(page.texts)
    assert found["rows"][1]["frames_per_s"] == pytest.approx(50)
    assert found["verdict"] == "pass"
    frames = {f["name"]: f for f in found["frames"]}
    for frame in report.frames:
        for name, mask in frame.masks.items():
            eager = frame.reference > 0
            shown = frames[frame.name]["rows"][name]
            assert shown["on"] == int((mask & ~eager).sum())
            assert shown["agreement"] == pytest.approx((mask & eager).sum() / (mask | eager).sum())


def test_a_changed_number_changes_the_page(tmp_path: Path) -> None:
    """The twin of the test above: it looks at the page, not at itself."""
    report = sample_report()
    row = replace(report.rows[1], score=replace(report.rows[1].score, m_j=12.34))
    _, page = written(replace(report, rows=(report.rows[0], row, *report.rows[2:])), tmp_path)
    assert "12.34" in page.texts
    assert data_of(page)["rows"][1]["score"]["m_j"] == 12.34


def test_m_j_change_is_paired() -> None:
    """Videos that all lose one point: the interval has no width, whatever their own spread."""
    report = sample_report()
    base, row = report.rows[:2]
    eager = replace(base.score, m_j=60.0, j=(0.2, 1.0), m_f=0.9, f=(0.8, 1.0))
    ours = replace(
        row, score=replace(row.score, m_j=59.0, j=(0.19, 0.99), m_f=0.89, f=(0.79, 0.99))
    )
    report = replace(report, rows=(replace(base, score=eager), ours), frames=())
    found = report.m_j_change(ours)
    assert found is not None and found[1] is not None
    assert found[0] == -1 and found[1] == pytest.approx((-1, -1))
    assert report.m_j_change(report.rows[0]) is None
    found = report.m_f_change(ours)
    assert found is not None and found == (pytest.approx(-0.01), pytest.approx((-0.01, -0.01)))
    unpaired = replace(ours, score=replace(ours.score, j=(0.5,)))
    assert report.m_j_change(unpaired) == (-1, None)


@pytest.mark.parametrize(
    ("checks", "verdict", "words"),
    [
        ((), "none", "No budget"),
        ((True, True), "pass", "Pass"),
        ((True, False), "fail", "Fail"),
    ],
)
def test_verdict(checks: tuple[bool, ...], verdict: str, words: str, tmp_path: Path) -> None:
    report = sample_report()
    found = tuple(Check(f"check {i}", "1", "at most 2", p) for i, p in enumerate(checks))
    report = replace(report, checks=found)
    text, page = written(report, tmp_path)
    assert report.verdict == verdict and words in page.texts
    assert f'class="card verdict {verdict}"' in text
    assert text.count('<li class="fail">') == checks.count(False)


def test_names_are_escaped(tmp_path: Path) -> None:
    nasty = f'{NASTY}"&{{{{data}}}}\udcff'  # a file name of no encoding, and a slot of the template
    report = sample_report()
    rows = tuple(replace(r, name=r.name + nasty, dataset=nasty) for r in report.rows)
    frames = tuple(
        replace(
            f, name=nasty, dataset=nasty, masks={name + nasty: m for name, m in f.masks.items()}
        )
        for f in report.frames
    )
    sections = (
        Section(nasty, Table((nasty,), ((nasty,),))),
        Section(nasty, nasty),
        Section(nasty, replace(report.sections[2].body, alt=nasty)),  # type: ignore[type-var]
    )
    report = replace(
        report, title=nasty, note=nasty, protocol=nasty, rows=rows, frames=frames,
        sections=sections, machine={nasty: nasty}, versions={nasty: nasty},
        checks=(Check(nasty, nasty, nasty, True),),
    )  # fmt: skip
    text, page = written(report, tmp_path)
    assert "<script>alert" not in text
    assert [t for t, _ in page.elements].count("script") == 3
    assert data_of(page)["title"] == nasty
    assert json.loads(page.scripts["frames"])["frames"][0]["name"] == nasty


@pytest.mark.slow
def test_size_stays_small(tmp_path: Path) -> None:
    """16 frames and 6 rows at 256 px."""
    report = sample_report(n_clips=8, side=256, n_backends=5)
    assert (len(report.rows), len(report.frames)) == (6, 16)
    text, page = written(report, tmp_path)
    assert len(text) < 3e6
    assert "shrunk" not in " ".join(page.texts)


@pytest.mark.slow
def test_page_says_that_frames_are_shrunk(tmp_path: Path) -> None:
    _, page = written(sample_report(n_clips=1, side=600), tmp_path)
    assert "shrunk to 512 px" in " ".join(page.texts)


def test_origin(tmp_path: Path) -> None:
    digest = "0123456789abcdef" * 4
    report = replace(
        sample_report(), made="2026-11-28 14:55 UTC", command="save-compare 'my bundle'",
        bundles={"my_bundle": digest}, machine={"cpu": "some CPU", "memory_gib": 23.5},
    )  # fmt: skip
    text, page = written(report, tmp_path)
    assert page.texts[page.texts.index("23.5 GiB") - 1] == "memory"
    for words in (report.made, report.command, "my_bundle", "sha256 0123456789abcdef", "some CPU"):
        assert words in page.texts
    assert "my_<wbr>bundle" in text and digest in text
    assert data_of(page)["bundles"] == {"my_bundle": digest}
    _, page = written(sample_report(), tmp_path)
    assert "command" not in page.texts  # a call from Python has none


def test_speed_is_drawn_once(tmp_path: Path) -> None:
    """Datasets share their timings. The twin: another timing of the same name is drawn, too."""
    report = sample_report(datasets=("scenes", "stamps"))
    text, page = written(report, tmp_path)
    assert text.count('class="dot ') == 2 * len(SAMPLES) * 3 and page.texts.count("Latency") == 1
    for title in ("M_J change", "M_F change"):  # a panel each, with a chart per dataset
        assert f"<h4>{title}</h4>" in text
    assert text.count("<figcaption>scenes</figcaption>") == 2
    other = replace(report.rows[-1].latency, samples_ms=(1.0,) * len(SAMPLES))
    rows = (*report.rows[:-1], replace(report.rows[-1], latency=other))
    text, page = written(replace(report, rows=rows), tmp_path)
    assert text.count('class="dot ') == 2 * len(SAMPLES) * 4
    assert f"{rows[-1].name} on stamps" in page.texts


def test_unsteady_speed_is_not_green(tmp_path: Path) -> None:
    report = sample_report()
    unsure = Check("speed-up", "2.0", "at least 1.5 x", True, "not steady, noise 24%")
    text, page = written(replace(report, checks=(*report.checks, unsure)), tmp_path)
    assert "Unsteady" in page.texts and "Pass" not in page.texts
    assert 'class="card verdict unsure"' in text and text.count('<li class="pass">') == 1
    assert "~ speed-up" in page.texts and data_of(page)["verdict"] == "pass"
    text, page = written(replace(report, checks=(replace(unsure, unsure=""),)), tmp_path)
    assert "Pass" in page.texts and 'class="card verdict pass"' in text
    failed = replace(unsure, passed=False)
    assert "Fail" in written(replace(report, checks=(failed,)), tmp_path)[1].texts


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("eager", "a b"), ["eager", "a b"]),
        (
            ("eager", "save_vit_t_256_fp32 onnxruntime", "save_vit_t_256_fp32_two onnxruntime"),
            ["eager", "…_fp32 onnxruntime", "…_fp32_two onnxruntime"],
        ),
        (("x" * 60, "x" * 30 + "y" + "x" * 29), ["1 xxxxxxxxxx…xxxxxxxxxx", "2 xxxxxxxxxx…xxxxxxxxxx"]),
    ],
)  # fmt: skip
def test_labels_differ(names: tuple[str, ...], expected: list[str]) -> None:
    found = labels(names, 25 * 6.6)
    assert len(set(found)) == len(names) and found == expected


def test_every_sample_is_drawn(tmp_path: Path) -> None:
    report = sample_report()
    text, _ = written(report, tmp_path)
    dots = text.count('class="dot ')
    assert dots == 2 * len(SAMPLES) * len(report.rows)  # for a column and for a phone


# ---- what it refuses, and what it does without


def test_without_frames_parity_or_others(tmp_path: Path) -> None:
    report = sample_report()
    _, page = written(replace(report, rows=report.rows[:1], frames=(), sections=()), tmp_path)
    assert "No frames were kept for this report." in page.texts
    bare = tuple(replace(r, parity=None, margin=None, time_split=None) for r in report.rows[1:])
    _, page = written(replace(report, rows=bare[:1], frames=()), tmp_path)
    assert "Lowest agreement" not in page.texts


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (lambda r: replace(r, rows=()), "no row"),
        (lambda r: replace(r, rows=(r.rows[0], r.rows[0])), "two rows of one name"),
        (lambda r: _row(r, speedup=float("nan")), "speedup is no number"),
        (lambda r: _row(r, time_split=replace(r.rows[1].time_split, model=np.inf)), "model"),
        (lambda r: _row(r, score=replace(r.rows[1].score, j=(float("nan"),))), "score.j"),
        (lambda r: _row(r, latency=replace(r.rows[1].latency, samples_ms=())), "no latency"),
        (lambda r: _row(r, parity=None), "two references"),
        (lambda r: _frame(r, reference=np.full((64, 64), np.nan)), "logits"),
        (lambda r: _frame(r, waveform=np.full(9, np.inf, np.float32)), "waveform"),
        (lambda r: _frame(r, truth=np.zeros((8, 8), bool)), "mask truth"),
        (lambda r: _frame(r, frame=np.zeros((64, 64), np.uint8)), "frame"),
        (lambda r: _frame(r, dataset="elsewhere"), "no row of its dataset"),
        (lambda r: _frame(r, masks={"nobody": np.zeros((64, 64), bool)}), "no such row"),
        (lambda r: _section(r, Table(("a", "b"), (("1",),))), "table broken"),
        (lambda r: _section(r, Figure(b"<html>", "")), "figure broken"),
    ],
)
def test_refused(broken: Any, what: str, tmp_path: Path) -> None:
    report = broken(sample_report())
    with pytest.raises(SaveDeployError, match=re.escape(what)):
        write_html(tmp_path / "report.html", report)
    assert list(tmp_path.iterdir()) == []


def _row(report: Report, **changes: Any) -> Report:
    return replace(
        report, rows=(report.rows[0], replace(report.rows[1], **changes), *report.rows[2:])
    )


def _frame(report: Report, **changes: Any) -> Report:
    return replace(report, frames=(replace(report.frames[0], **changes),))


def _section(report: Report, body: Table | Figure) -> Report:
    return replace(report, sections=(Section("broken", body),))


def test_no_place(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(SaveDeployError, match="cannot be written"):
        write_html(tmp_path / "report.html", sample_report())
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]  # no partial file
