"""A few seconds of every fuzzer, and a reader with a planted fault that a fuzzer must find."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fuzz import __main__ as fuzz
from tests.fuzz.readers import readers

SECONDS = 3
pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("fuzz")]


@pytest.mark.parametrize("kind", sorted(readers()))
def test_python_readers(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    done = fuzz.fuzz_python(kind, SECONDS, tmp_path)
    assert done.returncode == 0, fuzz.why(done)
    assert fuzz.executions(done) > 100


def test_a_fault_is_found(tmp_path: Path) -> None:
    """A reader that fails on one byte in ten thousand: found after some seconds, at most 120."""
    pytest.importorskip("atheris")
    done = fuzz.fuzz_python("planted", 120, tmp_path)
    assert done.returncode != 0 and "IndexError" in fuzz.why(done)


@pytest.mark.parametrize("kind", fuzz.CPP_KINDS)
def test_cpp_readers(kind: str, tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("not installed: apt-get install clang")
    done = fuzz.fuzz_cpp(fuzz.build_cpp(), kind, SECONDS, tmp_path)
    assert done.returncode == 0, fuzz.why(done)
    assert fuzz.executions(done) > 100
