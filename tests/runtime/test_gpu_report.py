"""The report of the GPU tests: without a GPU it says that nothing was verified, and exits 3."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from save_deploy.machine import read_nvidia
from tests.gpu.report import Collector, Row, write_report

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(bool(read_nvidia().gpus), reason="this machine has a GPU")
def test_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    command = [sys.executable, "-m", "tests.gpu", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 3, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("no GPU: ") and "tests skipped, nothing verified" in last
    n = int(last.split()[2])
    text = out.read_text()
    assert text.count("| skipped |") == n >= 20 and text.count("no GPU: no NVIDIA driver") == n
    assert "onnxruntime" in text and "| passed |" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outcomes", "code", "summary"),
    [
        (["passed", "skipped"], 0, "1 passed, 0 failed, 1 skipped"),
        (["passed", "failed"], 1, "1 passed, 1 failed, 0 skipped"),
        (["skipped", "skipped"], 3, "nothing ran: 2 tests skipped, nothing verified"),
    ],
)
def test_summary(tmp_path: Path, outcomes: list[str], code: int, summary: str) -> None:
    why = "tensorrt is not installed"
    rows = [Row(f"t{i}", o, 1.25, why, (("p50_ms", 1.23456),)) for i, o in enumerate(outcomes)]
    collector = Collector(rows)
    assert (collector.exit_code(), collector.summary()) == (code, summary)
    write_report(collector, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert summary in text and "p50_ms 1.235" in text and "| t1 |" in text


@pytest.mark.slow
def test_a_failure_is_kept_with_its_reason(tmp_path: Path) -> None:
    """The plugin itself, on three small tests of its own."""
    (tmp_path / "test_small.py").write_text(
        "import pytest\n"
        "def test_good(record_property): record_property('p50_ms', 2.0)\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_none(): pytest.skip('no GPU: none')\n"
    )
    code = (
        "import sys, pytest; from tests.gpu.report import Collector\n"
        "c = Collector(); pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1]], plugins=[c])\n"
        "print(); print([(r.name, r.outcome, r.why, r.figures) for r in c.rows])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=True,
    )  # fmt: skip
    assert eval(done.stdout.splitlines()[-1]) == [
        ("test_good", "passed", "", (("p50_ms", 2.0),)),
        ("test_bad", "failed", "assert 1 == 2", ()),
        ("test_none", "skipped", "no GPU: none", ()),
    ]
