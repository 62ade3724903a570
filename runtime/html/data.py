"""Content of report.html, which is checked completely before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Frame, Mask
from save_deploy.errors import SaveDeployError
from save_deploy.metrics.interval import Interval, bootstrap_interval
from save_deploy.runtime.compare.rows import Row


@dataclass(frozen=True)
class ReportFrame:
    """One frame with the masks of the rows of its dataset.

    frame: uint8 (H,W,3) RGB.
    masks: bool (S,T) by row name.
    reference: (S,T), logits or a mask. Logits add a layer with the pixels near the threshold.
    truth: (S,T) if known.
    waveform: float32 (n,) 16 kHz in [-1,1], empty when no sound is stored.
    The frame is stretched over the masks, as the network sees it.
    """

    name: str
    dataset: str
    frame: Frame
    reference: NDArray[np.floating] | Mask
    masks: Mapping[str, Mask]
    truth: Mask | None = None
    waveform: Waveform = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def reference_mask(self) -> Mask:
        values = self.reference
        return values.astype(bool) if values.dtype == bool else values > 0


@dataclass(frozen=True)
class Table:
    """A table with one text cell per column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A PNG or SVG file. alt: description of its content."""

    data: bytes
    alt: str


@dataclass(frozen=True)
class Section:
    """Additional part of the page: a table, an image, or text (empty lines separate paragraphs)."""

    title: str
    body: Table | Figure | str


@dataclass(frozen=True)
class Check:
    """A budget and the value found, as text: "M_J drop", "0.12", "at most 0.5".

    unsure: why the value proves little, "" where it does not.
    """

    name: str
    got: str
    allowed: str
    passed: bool
    unsure: str = ""

    @property
    def word(self) -> str:
        """Of a check that is passed."""
        return f"pass ({self.unsure})" if self.unsure else "pass"


@dataclass(frozen=True)
class Report:
    """Content of the page. Rows keep their order; frames are sorted, worst first.

    made: date and time. command: what was typed. bundles: name -> sha256 of the manifest.
    """

    title: str
    note: str
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    protocol: str
    rows: tuple[Row, ...]
    frames: tuple[ReportFrame, ...] = ()
    sections: tuple[Section, ...] = ()
    checks: tuple[Check, ...] = ()
    made: str = ""
    command: str = ""
    bundles: Mapping[str, str] = field(default_factory=dict)

    @property
    def noise(self) -> float:
        """Largest spread of the calls of a row; above STEADY the speeds are not steady."""
        return max(row.latency.spread for row in self.rows)

    @property
    def verdict(self) -> str:
        """fail: a check failed; pass: all passed; none: no budget was set."""
        if not self.checks:
            return "none"
        return "pass" if all(check.passed for check in self.checks) else "fail"

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets, in the order of the rows."""
        return tuple(dict.fromkeys(row.dataset for row in self.rows))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows without duplicates. Every name has one color on the page."""
        return tuple(dict.fromkeys(row.name for row in self.rows))

    def reference(self, dataset: str) -> Row | None:
        return next((r for r in self.rows if r.reference and r.dataset == dataset), None)

    def m_j_change(self, row: Row) -> tuple[float, Interval | None] | None:
        """Return M_J minus that of the reference in points, with the 95 % interval.

        The interval is of the differences paired by video; None when the numbers of videos differ.
        The result is None for the reference and without a reference.
        """
        base = self.reference(row.dataset)
        if base is None or row.reference:
            return None
        change = row.score.m_j - base.score.m_j
        return change, _paired(row.score.j, base.score.j, 100)

    def m_f_change(self, row: Row) -> tuple[float, Interval | None] | None:
        """Return the same of M_F, 0 to 1."""
        base = self.reference(row.dataset)
        if base is None or row.reference:
            return None
        return row.score.m_f - base.score.m_f, _paired(row.score.f, base.score.f, 1)

    def check(self) -> None:
        """Raise SaveDeployError for content that cannot be shown.

        These are: no row, a duplicate name, a number that is not finite, masks of unequal sizes, a
        table with a missing cell.
        """
        if not self.rows:
            raise SaveDeployError("nothing to report", got="no row", expected="one or more")
        known: dict[str, set[str]] = {}
        for row in self.rows:
            if row.name in known.setdefault(row.dataset, set()):
                raise _wrong("two rows of one name", f"{row.name} on {row.dataset}", "unique names")
            known[row.dataset].add(row.name)
            _check_row(row)
        for dataset in self.datasets:
            if sum(r.reference for r in self.rows if r.dataset == dataset) > 1:
                raise _wrong("two references", dataset, "one for each dataset")
        for frame in self.frames:
            _check_frame(frame, known.get(frame.dataset, set()))
        for section in self.sections:
            _check_section(section)


def _paired(ours: tuple[float, ...], theirs: tuple[float, ...], scale: float) -> Interval | None:
    if len(ours) != len(theirs) or not ours:
        return None
    return bootstrap_interval([scale * (a - b) for a, b in zip(ours, theirs, strict=True)])


def _wrong(what: str, got: str, expected: str) -> SaveDeployError:
    return SaveDeployError(f"report cannot be written: {what}", got=got, expected=expected)


def _check_row(row: Row) -> None:
    for name, value in _numbers(row):
        if not math.isfinite(value):
            raise _wrong(f"{row.name}: {name} is no number", str(value), "a finite number")
    if not row.latency.samples_ms or min(row.latency.samples_ms) <= 0:
        raise _wrong(f"{row.name}: no latency", "no sample above 0 ms", "one or more samples")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield (path, value) of every float in nested dataclasses, mappings and tuples."""
    if is_dataclass(value):
        for f in fields(value):
            yield from _numbers(getattr(value, f.name), f"{name}.{f.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}")
    elif isinstance(value, tuple):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, float | np.floating):
        yield name, float(value)


def _check_frame(frame: ReportFrame, rows: set[str]) -> None:
    what, size = f"frame {frame.name}", frame.reference.shape
    if frame.frame.ndim != 3 or frame.frame.shape[2] != 3 or frame.frame.dtype != np.uint8:
        got = f"{frame.frame.dtype} {frame.frame.shape}"
        raise _wrong(what, got, "uint8 (H,W,3), RGB")
    if not rows:
        raise _wrong(f"{what}: no row of its dataset", frame.dataset, "a dataset of the rows")
    masks = {**frame.masks, **({} if frame.truth is None else {"truth": frame.truth})}
    for name, mask in masks.items():
        if mask.dtype != bool or mask.shape != size or mask.ndim != 2:
            raise _wrong(f"{what}, mask {name}", f"{mask.dtype} {mask.shape}", f"bool {size}")
    if unknown := set(frame.masks) - rows:
        raise _wrong(f"{what}: no such row", ", ".join(sorted(unknown)), f"rows of {frame.dataset}")
    for name, values in (("logits", frame.reference), ("waveform", frame.waveform)):
        if not np.isfinite(values).all():
            raise _wrong(f"{what}: {name}", "NaN or infinite values", "finite values")
    if frame.waveform.ndim != 1:
        raise _wrong(f"{what}: waveform", str(frame.waveform.shape), "(n,), mono")


def _check_section(section: Section) -> None:
    body = section.body
    if isinstance(body, Table):
        for row in body.rows:
            if len(row) != len(body.columns):
                raise _wrong(f"table {section.title}", f"{len(row)} cells", str(len(body.columns)))
    elif isinstance(body, Figure) and picture_type(body.data) is None:
        raise _wrong(f"figure {section.title}", repr(body.data[:16]), "a PNG or SVG file")


def picture_type(data: bytes) -> str | None:
    """Return the media type of a PNG or SVG file, None for others."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    return "image/svg+xml" if head.startswith(b"<") and b"<svg" in head else None
