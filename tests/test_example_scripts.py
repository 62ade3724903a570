"""The scripts of docs/examples for Python run as they stand (those in C and C++: tests/runtime)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from save_deploy.runtime.pipeline import load
from tests.runtime.films import tone, write_film

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


def test_readme_runs_a_bundle(bundle_fp32: Path, tmp_path: Path) -> None:
    """The block line by line in an empty folder, in the environment of the tests, not a new one."""
    readme = (EXAMPLES.parents[1] / "README.md").read_text()
    block = readme.split("## Run a bundle")[1].split("```")[1].strip()
    lines = block.splitlines()
    assert len(lines) <= 12 and lines[0].startswith("CLONE=") and lines[1].startswith("BUNDLE=")
    assert "-m venv env" in lines[2] and 'pip install "${CLONE}[cpu]"' in lines[3]
    (tmp_path / "env").symlink_to(sys.prefix)
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "picture.png")
    soundfile.write(tmp_path / "sound.wav", 0.2 * np.sin(np.arange(32_000)), 16_000)
    write_film(tmp_path / "film.mp4", seconds=1, fps=2, sound=tone(1, (0,)))
    script = "\n".join(["set -e", f"BUNDLE={bundle_fp32}", *lines[4:]])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("runs/*/*")}
    picture = {f"runs/picture/{name}" for name in ("mask.png", "overlay.png", "record.json")}
    assert made == {*picture, "runs/film/overlay.mp4", "runs/film/record.json"}
    assert Image.open(tmp_path / "mask.png").size == (80, 60)


def test_onnx_only(bundle_fp32: Path, tmp_path: Path) -> None:
    """Without this package, in the syntax of an old Python: its mask; a wrong sound has an answer."""
    picture, sound, wrong, out = (tmp_path / n for n in ("in.png", "in.wav", "44.wav", "out.png"))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 480, 3), dtype=np.uint8)).save(picture)
    soundfile.write(sound, 0.2 * np.sin(np.arange(12_000)), 16_000)
    soundfile.write(wrong, 0.2 * np.sin(np.arange(44_100)), 44_100)
    program = EXAMPLES / "onnx_only.py"
    ast.parse(program.read_text(), feature_version=(3, 8))
    code = (
        "import runpy, sys; sys.modules['save_deploy'] = None\n"
        "del sys.argv[0]; runpy.run_path(sys.argv[0])"
    )
    for heard, status in ((sound, 0), (wrong, 1)):
        done = subprocess.run(
            [sys.executable, "-c", code, program, bundle_fp32, picture, heard, out],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
    assert "mono at 16 kHz" in done.stderr
    with load(bundle_fp32, backend="onnxruntime") as segment:
        expected = segment(picture, sound)
    differ = (np.asarray(Image.open(out)) > 0) != expected
    assert 0 < expected.mean() < 1 and differ.mean() < 1e-4


@pytest.mark.thorough
def test_export(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = run("export.py", tiny_checkpoint, "224", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "fp16: mask agreement 0.99" in done.stdout or "fp16: mask agreement 1.0" in done.stdout
    refused = run("export.py", tiny_checkpoint, "224", tmp_path / "out")  # it is there already
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
