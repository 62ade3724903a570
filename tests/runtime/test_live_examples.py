"""The examples of docs/live.md are its files, and run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from save_deploy.runtime.pipeline import load
from tests.runtime.cpp import ROOT, SOURCE
from tests.runtime.films import tone, write_film

EXAMPLES = ROOT / "docs" / "examples"


@pytest.mark.parametrize("name", ["live.py", "live.c"])
def test_documented(name: str) -> None:
    shown = (EXAMPLES / name).read_text()
    blocks = re.findall(r"```(?:python|c)\n(.*?)```", (ROOT / "docs" / "live.md").read_text(), re.S)
    assert [block for block in blocks if block in shown]


def test_python_example(bundle_fp32: Path, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", seconds=1, fps=10, sound=tone(1, (0,)))
    done = subprocess.run(
        [sys.executable, EXAMPLES / "live.py", bundle_fp32, film],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines and all(re.fullmatch(r"[\d.]+ s: [\d.]+% sounds, \d+ skipped", x) for x in lines)


def test_c_example(build: Path, bundle_fp32: Path, tmp_path: Path) -> None:
    """Two captures through the program, and through Python."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("not installed: apt-get install gcc")
    program = tmp_path / "live"
    built = subprocess.run(
        [compiler, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", EXAMPLES / "live.c",
         "-I", SOURCE / "include", "-L", build, "-lsave_runtime", f"-Wl,-rpath,{build}",
         "-o", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 48, 64, 3), np.uint8)
    sounds = rng.uniform(-0.5, 0.5, (2, 16_000)).astype(np.float32)
    given = b"".join(f.tobytes() + s.tobytes() for f, s in zip(frames, sounds, strict=True))
    done = subprocess.run(
        [program, bundle_fp32, "64", "48"], input=given, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(done.stdout, np.uint8).reshape(2, 48, 64) > 0
    with load(bundle_fp32, backend="openvino", threads=1) as segment:
        for frame, sound, mask in zip(frames, sounds, found, strict=True):
            assert np.mean(segment(frame, sound) != mask) < 1e-3  # near a logit of 0
    refused = subprocess.run([program, tmp_path, "64", "48"], capture_output=True, check=False)
    assert refused.returncode == 1 and b"not a bundle" in refused.stderr
