"""Outcomes of the tests and their figures -> gpu_report.md, to be pasted back.

Written anew after every test and every figure, whole each time: a run that is killed at its limit
leaves a report that is complete up to there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from save_deploy.machine import describe, read_nvidia, versions
from tests.gpu.tree import is_dry

Figures = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Row:
    """One test: running, passed, failed or skipped; why: of a skip, or the last line of a failure."""

    name: str
    outcome: str
    seconds: float
    why: str = ""
    figures: Figures = ()


@dataclass
class Collector:
    """A pytest plugin that keeps one row per test and writes them. out None: nowhere."""

    out: Path | None = None
    rows: list[Row] = field(default_factory=list)
    asked: int = 0
    done: bool = False
    _head: list[str] = field(default_factory=list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.asked = len(session.items)
        session.config.stash[COLLECTOR] = self
        self.write()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.rows.append(Row(_name(nodeid), "running", 0.0))
        self.write()

    def note(self, nodeid: str, figures: Figures) -> None:
        """Figures of a test that is still running."""
        self._put(Row(_name(nodeid), "running", 0.0, figures=figures))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        if report.when == "teardown" and report.outcome != "failed":
            return
        why = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            why = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            why = lines[0].removeprefix("E ").strip() if lines else report.longreprtext[-200:]
        figures = tuple(report.user_properties)
        self._put(Row(_name(report.nodeid), report.outcome, report.duration, why, figures))

    def _put(self, row: Row) -> None:
        """In place of the row that the test has while it runs."""
        if self.rows and self.rows[-1].name == row.name:
            self.rows.pop()
        self.rows.append(row)
        self.write()

    def finish(self) -> None:
        self.done = True
        self.write()

    def count(self, outcome: str) -> int:
        return sum(row.outcome == outcome for row in self.rows)

    def summary(self) -> str:
        passed, failed, skipped = map(self.count, ("passed", "failed", "skipped"))
        if self.done and not passed and not failed:
            return f"nothing ran: {skipped} tests skipped, nothing verified"
        counted = f"{passed} passed, {failed} failed, {skipped} skipped"
        if self.done:
            return counted
        return f"NOT COMPLETE, {passed + failed + skipped} of {self.asked} tests: {counted}"

    def exit_code(self) -> int:
        """0 all that ran passed, 1 a failure, 3 nothing could run."""
        if self.count("failed"):
            return 1
        return 0 if self.count("passed") else 3

    def write(self) -> None:
        """The whole report, which appears in place of the one before."""
        if self.out is None:
            return
        self._head = self._head or _machine()
        lines = ["# GPU report", "", self.summary(), "", *self._head]
        lines += ["", "| test | outcome | s | figures |", "|---|---|---|---|"]
        lines += [_line(row) for row in self.rows]
        partial = self.out.with_name(f".{self.out.name}.partial")
        partial.write_text("\n".join(lines) + "\n")
        os.replace(partial, self.out)


COLLECTOR = pytest.StashKey[Collector]()


def _machine() -> list[str]:
    nvidia, here = read_nvidia(), describe()
    gpus = [f"{g.name}, {g.target}, {g.total_bytes / 2**30:.0f} GiB" for g in nvidia.gpus]
    dry = ["- **dry run: everything on the CPU, no figure is of a GPU**"] if is_dry() else []
    return [
        *dry,
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- GPU: {'; '.join(gpus) or nvidia.problem}",
        f"- driver: {nvidia.driver or 'none'}, up to CUDA {nvidia.cuda or '-'}",
        f"- system: {here['system']}, {here['cpu']}, {here['cores']} cores",
        "- packages: " + ", ".join(f"{name} {v}" for name, v in versions().items()),
    ]


def _name(nodeid: str) -> str:
    return nodeid.partition("::")[2]


def _line(row: Row) -> str:
    shown = [f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in row.figures]
    text = "; ".join([*([row.why] if row.why else []), *shown]).replace("|", "\\|")
    return f"| {row.name} | {row.outcome} | {row.seconds:.1f} | {' '.join(text.split())} |"
