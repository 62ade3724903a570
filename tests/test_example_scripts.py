"""The scripts of docs/examples for Python run as they stand (those in C and C++: tests/runtime)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from save_deploy.runtime.pipeline import load

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def test_mask(bundle_fp32: Path, tmp_path: Path) -> None:
    picture, sound, out = (tmp_path / name for name in ("in.png", "in.wav", "out.png"))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)).save(picture)
    soundfile.write(sound, 0.2 * np.sin(np.arange(16_000)), 16_000)
    done = run("mask.py", bundle_fp32, picture, sound, out)
    assert done.returncode == 0, done.stderr
    with load(bundle_fp32) as segment:
        expected = segment(picture, sound)
    assert np.array_equal(np.asarray(Image.open(out)) > 0, expected)
    assert f"{expected.share:.1%} of the picture" in done.stdout
    assert run("mask.py", tmp_path, picture, sound, out).returncode != 0


@pytest.mark.slow
def test_export(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = run("export.py", tiny_checkpoint, "224", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "fp16: mask agreement 0.99" in done.stdout or "fp16: mask agreement 1.0" in done.stdout
    refused = run("export.py", tiny_checkpoint, "224", tmp_path / "out")  # it is there already
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
