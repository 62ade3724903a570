"""A bundle laid out for the Hugging Face Hub is still that bundle, with a card that says what it is."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import save_deploy
from save_deploy.bundle import Manifest
from tests.command import run


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def hub(bundle_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("publish") / "hub"
    done = run("publish", bundle_fp32, "-o", out, "--license", "mit", "--repo", "me/model")
    assert done.returncode == 0, done.stderr
    assert "note" not in done.stdout
    return out


def test_files(bundle_fp32: Path, hub: Path) -> None:
    listed = {"manifest.json", *Manifest.read(bundle_fp32).files}
    assert files_of(hub) == {*listed, "README.md", "SHA256SUMS", ".gitattributes"}
    for name in listed:
        assert (hub / name).read_bytes() == (bundle_fp32 / name).read_bytes(), name
    sums = dict(line.split("  ")[::-1] for line in (hub / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == listed
    for name, sha256 in sums.items():
        assert hashlib.sha256((hub / name).read_bytes()).hexdigest() == sha256, name


def test_it_loads_and_verifies(bundle_fp32: Path, hub: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    sound = np.random.default_rng(1).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    masks = []
    for folder in (bundle_fp32, hub):
        with save_deploy.load(folder, backend="onnxruntime", threads=1) as segment:
            masks.append(segment.logits(frame, segment.embed(sound)))
    assert np.array_equal(*masks)
    assert run("verify", hub, "--backend", "onnxruntime").returncode == 0


def test_card(bundle_fp32: Path, hub: Path) -> None:
    card = (hub / "README.md").read_text()
    front = re.match(r"---\n(.*?)\n---\n", card, re.S)
    assert front is not None
    assert {"license: mit", "library_name: save-deploy"} <= set(front[1].splitlines())
    rows = json.loads((bundle_fp32 / "report.json").read_text())["rows"]
    for row in rows:
        assert f"| {row['backend']} | fp32 |" in card
    assert 'save_deploy.load("model")' in card and "hf download me/model" in card
    source = Manifest.read(bundle_fp32).source["files"][0]
    assert f"| {source['name']} | {source['sha256']} |" in card
    assert "{" not in re.sub(r"```.*?```", "", card, flags=re.S)


def test_license_that_is_not_told(bundle_fp32: Path, tmp_path: Path) -> None:
    done = run("publish", bundle_fp32, "-o", tmp_path / "hub")
    assert "note: the card says license: other" in done.stdout
    assert "license: other\n" in (tmp_path / "hub/README.md").read_text()


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--license", "My License\nx: y"], "wrong license"), (["--repo", "../x"], "wrong --repo")],
)
def test_refused(bundle_fp32: Path, tmp_path: Path, options: list[str], text: str) -> None:
    done = run("publish", bundle_fp32, "-o", tmp_path / "hub", *options)
    assert done.returncode == 1 and text in done.stderr
    assert not (tmp_path / "hub").exists()


def test_altered_bundle(bundle_fp32: Path, tmp_path: Path) -> None:
    """A graph that differs is refused; a report that does is left out, and said."""
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_fp32, bundle)
    (bundle / "report.md").write_text("the best of all models")
    done = run("publish", bundle, "-o", tmp_path / "hub")
    assert done.returncode == 0 and "note: left out: report.md" in done.stdout
    assert "the best" not in (tmp_path / "hub/README.md").read_text()
    assert not (tmp_path / "hub/report.md").exists()
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    done = run("publish", bundle, "-o", tmp_path / "other")
    assert done.returncode == 1 and "altered" in done.stderr
    assert not (tmp_path / "other").exists()


def test_replacing(bundle_fp32: Path, hub: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(hub, mine)
    assert "output exists" in run("publish", bundle_fp32, "-o", mine).stderr
    assert run("publish", bundle_fp32, "-o", mine, "--force").returncode == 0
    (mine / "README.md").write_text("my notes")
    done = run("publish", bundle_fp32, "-o", mine, "--force")
    assert done.returncode == 1 and (mine / "README.md").read_text() == "my notes"
