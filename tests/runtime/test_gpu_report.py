"""The report of the GPU tests: without a GPU nothing is verified; one that is cut keeps what it had."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from save_deploy.machine import read_nvidia
from tests.conftest import ROOT
from tests.gpu.__main__ import GROUPS
from tests.gpu.report import Collector, Row
from tests.gpu.tree import use_tree

no_gpu = pytest.mark.skipif(bool(read_nvidia().gpus), reason="this machine has a GPU")


@no_gpu
@pytest.mark.slow
def test_without_a_gpu(tmp_path: Path, record_property: object) -> None:
    """Exit 3 with the reason, before torch and pytest are imported."""
    out = tmp_path / "report.md"
    code = (
        "import sys; sys.modules['torch'] = sys.modules['pytest'] = None\n"
        f"sys.argv = ['tests.gpu', '-o', {str(out)!r}]\n"
        "import runpy; runpy.run_module('tests.gpu', run_name='__main__')"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    record_property("seconds", round(time.perf_counter() - begun, 2))  # type: ignore[operator]
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout.startswith("no GPU: no NVIDIA driver") and "nothing verified" in done.stdout
    assert "no GPU: no NVIDIA driver" in out.read_text() and "| test |" not in out.read_text()


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
    collector = Collector(tmp_path / "report.md", rows)
    collector.finish()
    assert (collector.exit_code(), collector.summary()) == (code, summary)
    text = (tmp_path / "report.md").read_text()
    assert summary in text and "p50_ms 1.235" in text and "| t1 |" in text


SMALL = """
import os, pytest, signal, time
pytestmark = pytest.mark.gpu
def test_good(record_property): record_property('p50_ms', 2.0)
def test_bad(): assert 1 == 2
def test_none(): pytest.skip('no TensorRT')
@pytest.fixture
def figures(request):
    from tests.gpu.report import COLLECTOR
    def record(**values):
        request.node.user_properties.extend(values.items())
        request.config.stash[COLLECTOR].note(request.node.nodeid, tuple(request.node.user_properties))
    return record
def test_long(figures):
    figures(first_ms=1.5)
    figures(second_ms=2.5)
    {cut}
def test_never_reached(): pass
"""
# a device that is seen, and tests of a folder of their own
FAKED = """
import sys
from pathlib import Path
import save_deploy.machine as machine
gpu = machine.Gpu('NVIDIA H100', (9, 0), 80 << 30, None)
machine.read_nvidia = lambda: machine.Nvidia((gpu,), '580', '13.0')
from tests.gpu.__main__ import main
sys.exit(main(['-o', sys.argv[1]], tests=Path(sys.argv[2])))
"""


def faked_run(folder: Path, cut: str) -> tuple[int, str]:
    """-> exit code and report of a run on a device that is not there."""
    (folder / "test_small.py").write_text(SMALL.format(cut=cut))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    out = folder / "report.md"
    done = subprocess.run(
        [sys.executable, "-c", FAKED, str(out), str(folder)],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert not [p for p in folder.iterdir() if p.name.endswith(".partial")]
    return done.returncode, out.read_text()


@pytest.mark.slow
def test_a_run_that_is_cut_is_complete_up_to_there(tmp_path: Path) -> None:
    """Killed as at a limit of time, in the middle of a test: rows and figures until then are there."""
    code, text = faked_run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL
    assert "NOT COMPLETE, 3 of 5 tests: 1 passed, 1 failed, 1 skipped" in text
    assert "NVIDIA H100, SM90, 80 GiB" in text and "driver: 580, up to CUDA 13.0" in text
    rows = [line for line in text.splitlines() if line.startswith("| test_")]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| test_good", "passed"], ["| test_bad", "failed"], ["| test_none", "skipped"],
        ["| test_long", "running"],
    ]  # fmt: skip
    assert "p50_ms 2" in rows[0] and "assert 1 == 2" in rows[1] and "no TensorRT" in rows[2]
    assert "first_ms 1.5; second_ms 2.5" in rows[3]


@pytest.mark.slow
def test_a_run_that_ends_says_so(tmp_path: Path) -> None:
    """The twin: the same tests, not cut."""
    code, text = faked_run(tmp_path, "pass")
    assert code == 1 and "NOT COMPLETE" not in text and "running" not in text
    assert "\n3 passed, 1 failed, 1 skipped\n" in text
    assert "| test_long | passed |" in text and "first_ms 1.5; second_ms 2.5" in text


def test_groups_are_files_of_tests() -> None:
    """-k takes the name of a file: every file is a group, no test is in two."""
    files = {p.stem.removeprefix("test_"): p for p in (ROOT / "tests/gpu").glob("test_*.py")}
    assert set(GROUPS) == set(files)
    for name in GROUPS:
        for other in set(files) - {name}:
            tests = re.findall(r"def (test_\w+)", files[other].read_text())
            taken = [test for test in [other, *tests] if name in test]
            assert not taken, f"-k {name} would take {taken} of {other}"


@no_gpu
@pytest.mark.slow
def test_from_a_copied_tree_without_an_install(tmp_path: Path) -> None:
    """Only the libraries are installed there: the package is found through links, in children too."""
    names = ("save_deploy", "export", "runtime", "calibration", "tests", "pyproject.toml")
    for name in names:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "golden")
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    code = (
        "import importlib.metadata, subprocess, sys\n"
        # what an editable install has put there is not
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')"
        " and 'editable' not in repr(f)]\n"
        "from tests.gpu.tree import use_tree\n"
        "folder = use_tree()\n"
        "import save_deploy.runtime.pipeline as p, save_deploy.export.options\n"
        "print(folder is not None, p.__file__)\n"
        "child = 'import save_deploy.runtime as r; print(r.__file__)'\n"
        "print(subprocess.run([sys.executable, '-P', '-c', child], capture_output=True, text=True,"
        " check=True).stdout)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment, check=True,
    )  # fmt: skip
    here, child = done.stdout.split("\n", 1)
    assert here.startswith("True ") and "save-deploy-tree-" in here
    assert "save-deploy-tree-" in child or "runtime/__init__.py" in child


def test_an_installed_package_is_taken_as_it_is() -> None:
    assert use_tree() is None
