"""Outcomes of the tests and their figures -> gpu_report.md, to be pasted back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from save_deploy.runtime.doctor import examine


@dataclass(frozen=True)
class Row:
    """One test: passed, failed or skipped; why: of a skip, or the last line of a failure."""

    name: str
    outcome: str
    seconds: float
    why: str
    figures: tuple[tuple[str, Any], ...]


@dataclass
class Collector:
    """A pytest plugin that keeps one row per test."""

    rows: list[Row] = field(default_factory=list)

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
        name = report.nodeid.partition("::")[2]
        row = Row(name, report.outcome, report.duration, why, tuple(report.user_properties))
        self.rows.append(row)

    def count(self, outcome: str) -> int:
        return sum(row.outcome == outcome for row in self.rows)

    def summary(self) -> str:
        passed, failed, skipped = map(self.count, ("passed", "failed", "skipped"))
        if not passed and not failed:
            reasons = {row.why for row in self.rows}
            lacking = (
                "no GPU" if all(why.startswith("no GPU") for why in reasons) else "nothing ran"
            )
            return f"{lacking}: {skipped} tests skipped, nothing verified"
        return f"{passed} passed, {failed} failed, {skipped} skipped"

    def exit_code(self) -> int:
        """0 all that ran passed, 1 a failure, 3 nothing could run."""
        if self.count("failed"):
            return 1
        return 0 if self.count("passed") else 3


def write_report(collector: Collector, out: Path) -> None:
    """Machine, versions, and a row per test; figures as they were recorded."""
    found = examine()
    machine = found.machine
    gpus = [f"{g.name}, {g.target}, {g.total_bytes / 2**30:.0f} GiB" for g in machine.gpus] or [
        machine.problem
    ]
    lines = [
        "# GPU report", "", collector.summary(), "",
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- GPU: {'; '.join(gpus)}",
        f"- driver: {machine.driver or 'none'}, up to CUDA {machine.cuda or '-'}",
        f"- system: {found.computer['system']}, {found.computer['cpu']}",
        "- packages: " + ", ".join(f"{n} {v}" for n, v in found.packages.items()),
        *(f"- provider {t.name}: {'loads' if t.works else t.problem}" for t in found.trials),
        "", "| test | outcome | s | figures |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [_line(row) for row in collector.rows]
    out.write_text("\n".join(lines) + "\n")


def _line(row: Row) -> str:
    shown = [f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in row.figures]
    text = "; ".join([*([row.why] if row.why else []), *shown]).replace("|", "\\|")
    return f"| {row.name} | {row.outcome} | {row.seconds:.1f} | {text} |"
