"""A timing beside other processes: what they used, which rounds are dropped, which ratios withheld."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from save_deploy.cli.inspect import _scores
from save_deploy.config import SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.machine import allowed_cores
from save_deploy.metrics.disturbance import Disturbance
from save_deploy.metrics.latency import LatencyResult, speedup
from save_deploy.runtime.bench.entries import Subject, graph_entry
from save_deploy.runtime.bench.report import footnote, table, write_result
from save_deploy.runtime.bench.run import BenchResult, Outcome, _run_rounds
from save_deploy.runtime.compare import others
from save_deploy.runtime.compare.budget import check_rows, require
from save_deploy.runtime.compare.entries import EagerSource
from save_deploy.runtime.compare.export_table import footnote as export_footnote
from save_deploy.runtime.compare.options import Budget
from save_deploy.runtime.compare.others import NO_TIMES, TOO_SHORT, Reading, Watch
from save_deploy.runtime.compare.rows import row_values
from save_deploy.runtime.compare.speed import Timing, time_interleaved
from save_deploy.runtime.compare.table import EXPORT_COLUMNS, compare_columns, table_of
from save_deploy.runtime.html import write_html
from tests.conftest import TINY, real_read_cpu
from tests.runtime.html_samples import sample_report

BUSY = Disturbance(rounds=40, asked=20, disturbed=34, cores=0.9, of=2)
REASON = (
    "other processes used 0.9 of 2 cores in 34 of 40 rounds; times are not comparable, "
    "run again on an idle machine"
)


class Machine:
    """Two cores with counters as the system has them. others: cores that others use in each round."""

    def __init__(self, others: list[float] | None, own: float = 1.1, round_s: float = 1.0) -> None:
        self.others, self.own, self.round_s = others, own, round_s
        self.at = self.idle = self.mine = 0.0
        self.done = 0

    def read(self) -> Reading | None:
        if self.others is None:
            return None
        return Reading(self.at, self.idle, 2 * self.at, self.mine)

    def work(self) -> None:
        """One round."""
        used = self.others[self.done % len(self.others)] if self.others else 0.0
        self.done += 1
        self.at += self.round_s
        self.mine += self.own * self.round_s
        self.idle += max(0.0, 2 - self.own - used) * self.round_s

    def watch(self, threads: int | None = 2) -> Watch:
        return Watch(threads, read=self.read, clock=lambda: self.at)

    def run(self, rounds: int, watch: Watch) -> None:
        for _ in watch.rounds(rounds):
            self.work()
            watch.round_done()


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    if "real" not in request.node.name:
        monkeypatch.setattr(others, "allowed_cores", lambda: 2)
        monkeypatch.setattr(others, "default_threads", lambda: 2)
        monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 2)
    return


# ---- rules


def test_a_busy_machine_is_said_in_numbers() -> None:
    """14 of the first 20 rounds and all that repeat them; the numbers of the text are counted here."""
    machine = Machine([0.9] * 14 + [0.0] * 6 + [0.9] * 20)
    watch = machine.watch()
    machine.run(20, watch)
    found = watch.result()
    assert (machine.done, found.rounds, found.disturbed, found.of) == (40, 40, 34, 2)
    assert found.cores == pytest.approx(0.9)
    assert found.withheld and found.reason == REASON
    assert found.text == f"NOT A RESULT, ratios are withheld: {REASON}"
    assert watch.pick(range(40)) == tuple(range(40)), "nothing is left out of what is no result"


def test_a_quiet_machine() -> None:
    """The twin: no round is repeated, nothing is said, and 4 % of the cores are nobody's business."""
    machine = Machine([0.0, 0.08])
    watch = machine.watch()
    machine.run(20, watch)
    assert machine.done == 20
    assert watch.result() == Disturbance(rounds=20, asked=20, of=2)
    assert (watch.result().text, watch.result().reason) == ("", "")
    assert watch.pick(range(20)) == tuple(range(20))


def test_disturbed_rounds_are_repeated() -> None:
    machine = Machine([0.0, 0.5, 0.7, 0.0, 0.0] + [0.0] * 20)
    watch = machine.watch()
    machine.run(5, watch)
    assert machine.done == 7 and not watch.result().withheld
    assert watch.pick("abcdefg") == tuple("adefg")
    assert watch.pick("aabbccddeeffgg", calls=2) == tuple("aaddeeffgg")
    assert "used 0.6 of 2 cores in 2 of 7 rounds" in watch.result().text


@pytest.mark.parametrize(
    ("clean", "asked", "rounds", "withheld"),
    [(10, 20, 40, False), (9, 20, 40, True), (3, 3, 6, False), (2, 3, 6, True), (4, 20, 8, False)],
)
def test_enough_rounds(clean: int, asked: int, rounds: int, withheld: bool) -> None:
    """Half of those asked for, or of those that the budget of time allowed, and three."""
    found = Disturbance(rounds, asked, rounds - clean, 1.0, 2)
    assert found.withheld == withheld == bool(found.reason)


def test_short_rounds_are_judged_together() -> None:
    """Eight rounds are a span of one second. The last, too short, has the verdict of the one before."""
    machine = Machine([0.0] * 16 + [0.4] * 9, round_s=0.125)
    watch = machine.watch()
    for _, _ in zip(range(25), watch.rounds(25), strict=False):
        machine.work()
        watch.round_done()
    assert watch.result().disturbed == 9 and watch.result().cores == pytest.approx(0.4)
    assert watch.pick(range(25)) == tuple(range(16))


def test_cores_that_nobody_needs() -> None:
    """One thread on two cores: others may use what is left. Both at once may not."""
    for used, disturbed in ((0.9, 0), (1.5, 8)):
        machine = Machine([used], own=0.5)
        watch = machine.watch(threads=1)
        machine.run(4, watch)
        assert watch.result().disturbed == disturbed


def test_where_nothing_can_be_seen() -> None:
    """Not on Linux; a container whose counters stand still; rounds of milliseconds. It is said."""
    still = Machine([0.0])
    still.read = lambda: Reading(still.at, 0.0, 0.0, still.mine)  # type: ignore[method-assign]
    for machine, why in (
        (Machine(None), NO_TIMES),
        (still, NO_TIMES),
        (Machine([1.9], round_s=0.001), TOO_SHORT),
    ):
        watch = machine.watch()
        machine.run(5, watch)
        found = watch.result()
        assert machine.done == 5 and not found.withheld
        assert found.text == f"other processes: not checked, {why}"


def test_times_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only allowed cores count, time that the hypervisor took is not idle, guests count once."""
    core = lambda **given: SimpleNamespace(
        **dict.fromkeys((*others._KINDS, "guest", "guest_nice"), 0.0) | given
    )
    cores = [core(user=5.0, guest=5.0, idle=1.0), core(idle=9.0), core(steal=3.0, idle=3.0)]
    monkeypatch.setattr("psutil.cpu_times", lambda percpu: cores)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 2})
    found = real_read_cpu()
    assert found is not None and (found.idle_s, found.total_s) == (4.0, 12.0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {7})
    assert real_read_cpu() is None
    monkeypatch.delattr("os.sched_getaffinity")
    assert real_read_cpu() is None


def test_real_times_of_this_process() -> None:
    """What this process and a child of it use is not that of others."""
    pytest.importorskip("resource")
    before = real_read_cpu()
    if before is None:
        pytest.skip("no CPU times here")
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    after = real_read_cpu()
    assert after is not None and 0.28 < after.own_s - before.own_s < 10
    assert after.total_s > before.total_s and after.idle_s >= before.idle_s


# ---- where it is shown


def test_timings_drop_disturbed_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine([0.0, 1.0, 0.0, 0.0], own=1.0)
    monkeypatch.setattr(others, "read_cpu", machine.read)
    calls: dict[str, Any] = {"a": machine.work, "b": lambda: None}
    found = time_interleaved(calls, rounds=4, warmup=0)
    assert machine.done == 5
    assert {len(result.samples_ms) for result in found.values()} == {4}
    assert Timing(found).others.disturbed == 1 and speedup(found["a"], found["b"]) is not None


def test_no_ratio_of_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine([1.0], own=1.0)
    monkeypatch.setattr(others, "read_cpu", machine.read)
    found = time_interleaved({"a": machine.work, "b": lambda: None}, rounds=4, warmup=0)
    assert {len(result.samples_ms) for result in found.values()} == {8}
    assert speedup(found["a"], found["b"]) is None
    assert "used 1.0 of 2 cores in 8 of 8 rounds" in found["b"].withheld


def busy_report() -> Any:
    report = sample_report()
    taken = lambda row: replace(row.latency, others=BUSY)
    rows = tuple(replace(row, latency=taken(row), speedup=None) for row in report.rows)
    return replace(report, rows=rows, note=BUSY.text)


def test_tables_and_reports(tmp_path: Path) -> None:
    """save-export's and save-compare's tables, report.json and report.html; the twin has the ratio."""
    busy, quiet = busy_report(), sample_report()
    for columns in (EXPORT_COLUMNS, compare_columns(eager=True)):
        for report, cell in ((busy, "withheld"), (quiet, "1.50")):
            shown = table_of(columns, report.rows)
            assert shown.rows[1][shown.columns.index("x eager")] == cell
    assert REASON in export_footnote(busy.rows, "scenes")
    assert "other processes" not in export_footnote(quiet.rows, "scenes")
    values = row_values(busy.rows[1])
    assert values["speedup"] is None and values["latency"]["withheld"] == REASON
    assert values["latency"]["others"]["disturbed"] == 34
    assert row_values(quiet.rows[1])["speedup"] == 1.5
    for report in (busy, quiet):
        write_html(tmp_path / "report.html", report)
        page = (tmp_path / "report.html").read_text()
        assert (REASON in page) == (report is busy)
        assert ('<p class="figure">withheld</p>' in page) == (report is busy)
        assert ('"speedup":null' in page) == (report is busy)


def test_a_budget_is_not_met_by_a_busy_machine() -> None:
    """Speed that was not measured is not fast enough; masks are judged as ever."""
    rows = [replace(row, bundle="b") for row in busy_report().rows]
    (check,) = check_rows(rows, Budget(min_speedup=1.1))
    assert not check.passed and check.got == f"withheld: {REASON}"
    with pytest.raises(SaveDeployError, match="run again on an idle machine") as caught:
        require((check,))
    assert caught.value.exit_code == 2
    assert check_rows([replace(r, bundle="b") for r in sample_report().rows], Budget(min_speedup=1.1))[
        0
    ].passed  # fmt: skip


def test_inspect_without_a_speed(tmp_path: Path) -> None:
    row = {"precision": "fp32", "score": {"m_j": 70.0}, "parity": {"mask_agreement": 1.0}}
    row |= {"backend": "openvino", "speedup": None}
    (tmp_path / "report.json").write_text(json.dumps({"rows": [row]}))
    assert "M_J 70.0" in (text := _scores(tmp_path, "fp32")) and "the machine was busy" in text


def test_benchmarks(tmp_path: Path) -> None:
    config = SaveConfig(**TINY)
    subject = Subject(config, EagerSource(tmp_path, None, config.res, 1, 4), 2, 1, 10**9, 10**9)
    gemm = {"torch": LatencyResult((10.0,))}
    for watched, cells in ((BUSY, ("withheld", "withheld")), (None, ("1.00", "6%"))):
        latency = LatencyResult((20.0, 20.0, 20.0), 1, watched)
        outcome = Outcome(graph_entry("naive", "onnxruntime", Path("x"), subject), latency)
        result = BenchResult(subject, (outcome,), gemm, {}, {}, True, others=watched)
        shown = dict(zip(table(result).columns, table(result).rows[0], strict=True))
        assert (shown["x naive"], shown["of GEMM rate"]) == cells
        assert (REASON in footnote(result)[0]) == (watched is BUSY)
        out = tmp_path / cells[0]
        write_result(result, out, "save-deploy bench")
        stored = json.loads((out / "bench.json").read_text())
        assert stored["withheld"] == (REASON if watched else None)
        assert stored["entries"][0]["x_naive"] == (None if watched else 1.0)


def test_benchmarks_repeat_disturbed_rounds() -> None:
    """Two calls of each round where models are loaded anew."""
    machine = Machine([0.0, 0.8, 0.0, 0.0])

    class Process:
        name, failed = "p", ""
        device_ms: list[float] = []  # noqa: RUF012
        start = stop = lambda self: None

        def __init__(self) -> None:
            self.samples_ms: list[float] = []

        def run(self) -> None:
            if len(self.samples_ms) % 2 == 0:
                machine.work()
            self.samples_ms.append(float(machine.done))

    process: Any = Process()
    _run_rounds([process], machine.watch(), resident=False, rounds=3, budget_s=60, on_step=print)
    assert process.samples_ms == [1, 1, 3, 3, 4, 4]


# ---- a real process


@pytest.mark.thorough
def test_real_process_of_lowest_priority() -> None:
    """On every core one of another session, as of another terminal: no ratio, and the reason."""
    if real_read_cpu() is None:
        pytest.skip("no CPU times here")
    spin = "import os, time\nos.nice(19)\nend = time.time() + 60\nwhile time.time() < end: pass"
    start = f"import subprocess, sys\nfor _ in range({allowed_cores()}):\n"
    start += (
        f"    to = subprocess.Popen([sys.executable, '-c', {spin!r}], stdout=subprocess.DEVNULL)\n"
    )
    start += "    print(to.pid)"
    # the program that starts them ends, so that they are nobody's children
    made = subprocess.run(
        [sys.executable, "-c", start], stdout=subprocess.PIPE, start_new_session=True, check=True
    )
    busy = [psutil.Process(int(pid)) for pid in made.stdout.split()]
    a = np.random.default_rng(0).random((200, 200))

    def call() -> None:
        for _ in range(5):
            a @ a
        time.sleep(0.02)  # as a thread at a barrier

    try:
        others_read, others.read_cpu = others.read_cpu, real_read_cpu
        found = time_interleaved({"a": call, "b": call}, rounds=20)
    finally:
        others.read_cpu = others_read
        for process in busy:
            process.kill()
    assert speedup(found["a"], found["b"]) is None
    assert f"of {allowed_cores()} cores" in found["a"].withheld
