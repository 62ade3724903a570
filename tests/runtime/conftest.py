"""Fixtures of the runtime's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runtime.cpp import BUILD, INSTALL, SOURCE, cmake, openvino_dir


@pytest.fixture(scope="session")
def build() -> Path:
    """build/cpp with warnings as errors. Skipped, with what to install, where something is missing."""
    pytest.importorskip("openvino", reason=INSTALL)
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip(INSTALL)
    configured = cmake("-S", SOURCE, "--preset", "ci", openvino_dir())
    if configured.returncode != 0 and "apt-get install" in configured.stderr:
        pytest.skip(f"{' '.join(configured.stderr.split())}")
    assert configured.returncode == 0, configured.stderr
    built = cmake("--build", BUILD, "-j", "2")
    assert built.returncode == 0, built.stdout + built.stderr
    return BUILD
