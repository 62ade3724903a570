"""A bundle that version 0.1 made: it verifies, runs in Python and C++, and equals its eager model."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from save_deploy.bundle import Manifest
from save_deploy.data.transforms import resize_frame
from save_deploy.files import new_folder
from save_deploy.runtime.pipeline import load
from tests.command import run
from tests.conftest import ROOT, SMALLEST, TINY, made_once, versions_hash
from tests.runtime.cpp import infer

OLD = "bc4c6391eb55"  # the last commit before folders, options and comparison were written anew
EXPORT = """
import json, sys
from pathlib import Path
import save_deploy
from save_deploy.checkpoints.random import write_random_checkpoint
from save_deploy.config import SaveConfig
from save_deploy.export.options import ExportOptions
from save_deploy.export.run import export_bundle
library, out = Path(sys.argv[1]), Path(sys.argv[2])
assert Path(save_deploy.__file__).is_relative_to(library), save_deploy.__file__
config = SaveConfig(**json.loads(sys.argv[3]))
checkpoint = write_random_checkpoint(out / "random.safetensors", config)
export_bundle(ExportOptions(checkpoint=checkpoint, res=config.res, precision="fp16",
                            out=out / "old", n_golden=2, rounds=3, threads=1, min_agreement=0.9))
"""


def old_package(library: Path) -> None:
    """The package as pip would install that commit, without asking any index."""
    archive = subprocess.run(
        ["git", "archive", OLD, "save_deploy", "export", "runtime", "calibration"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if archive.returncode != 0:
        pytest.skip(f"commit {OLD} is not in this clone: git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(library, filter="data")
    for name in ("export", "runtime", "calibration"):
        shutil.move(library / name, library / "save_deploy" / name)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the bundle `old` and its checkpoint, exported by the old code in its own process."""
    with made_once(f"old-{OLD}-{versions_hash()}") as place:
        if not place.exists():
            library = tmp_path_factory.mktemp("library")
            old_package(library)
            config = {**TINY, **SMALLEST}
            environment = {**os.environ, "PYTHONPATH": str(library)}
            with new_folder(place) as folder:
                done = subprocess.run(
                    [sys.executable, "-c", EXPORT, library, folder, json.dumps(config)],
                    env=environment, cwd=library, capture_output=True, text=True, timeout=300,
                    check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
def test_it_verifies(old: Path) -> None:
    done = run("verify", old / "old")
    assert done.returncode == 0 and "files intact" in done.stdout, done.stderr


@pytest.mark.slow
def test_its_masks_are_the_stored_ones(old: Path) -> None:
    """Golden samples of the old eager model, through today's pipeline."""
    golden, manifest = old / "old" / "golden", Manifest.read(old / "old")
    images, embeddings = (np.load(golden / f"{n}.npy") for n in ("image", "audio_embedding"))
    stored = np.load(golden / "mask_logits.npy")
    with load(old / "old") as pipeline:
        for image, embedding, expected in zip(images, embeddings, stored, strict=True):
            picture = image.reshape(manifest.config.res, manifest.config.res, 3)
            assert np.array_equal(resize_frame(picture, manifest.config.res), picture)
            logits = pipeline.logits(picture, embedding[None])
            assert ((logits > 0) == (expected > 0)).mean() > 0.99
            assert np.abs(logits - expected).max() <= 0.02 * np.ptp(stored)


@pytest.mark.slow
def test_it_compares_equal(old: Path, tmp_path: Path) -> None:
    few = ["--clips", "1", "--rounds", "3", "--threads", "1", "--no-memory", "--json"]
    given = ["--checkpoint", old / "random.safetensors", "--min-agreement", "0.9"]
    done = run("compare", old / "old", *few, *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "pass" and len(found["rows"]) == 2


def test_it_runs_in_cpp(old: Path, build: Path) -> None:
    done = infer(build, "verify", old / "old")
    assert done.returncode == 0 and "conformance cases, images equal" in done.stdout, done.stderr


def test_another_weight_is_noticed(old: Path, tmp_path: Path) -> None:
    """The twin: what verifies is that very file."""
    copy = Path(shutil.copytree(old / "old", tmp_path / "copy"))
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"x")
    done = run("verify", copy)
    assert done.returncode == 1 and "altered" in done.stderr
