"""The Polygraphy script: what is written runs, passes on a good bundle and fails on an altered one."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.errors import BundleError
from save_deploy.runtime.polygraphy_script import write_script
from tests.runtime.engines import full_entry, with_engine


def test_script_is_python_and_names_the_bundle(bundle: Path, tmp_path: Path) -> None:
    before = {path.name for path in bundle.iterdir()}
    written = write_script(bundle, tmp_path / "compare.py")
    ast.parse(written.read_text())
    assert str(bundle.resolve()) in written.read_text()
    assert {path.name for path in bundle.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["compare.py"]
    with pytest.raises(BundleError, match="not a bundle"):
        write_script(tmp_path, tmp_path / "other.py")


@pytest.mark.parametrize("installed", ["tensorrt_rtx", "tensorrt", ""])
def test_engine_of_the_installed_library_is_taken(
    bundle: Path, tmp_path: Path, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the script runs, not where it was written."""
    folder, manifest = with_engine(bundle, tmp_path)
    replace(manifest, engines=(*manifest.engines, full_entry())).write(folder)
    text = write_script(folder, tmp_path / "compare.py").read_text()
    head = text[: text.index("import numpy")]
    find = lambda name: object() if name == installed else None
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(os, "environ", environment := {})
    found: dict[str, Any] = {}
    exec(head, found)
    assert found["LIBRARY"] == installed
    assert found["ENGINES"] == {"tensorrt_rtx": "model.rtx.plan", "tensorrt": "model.plan"}
    assert ("POLYGRAPHY_USE_TENSORRT_RTX" in environment) == (installed == "tensorrt_rtx")


@pytest.mark.slow
def test_script_runs_on_the_cpu(bundle: Path, tmp_path: Path) -> None:
    """Golden samples pass; with recorded masks of other sign (the twin) the script says so, exit 2."""
    pytest.importorskip("polygraphy")
    script = write_script(bundle, tmp_path / "compare.py")
    good = run(script)
    assert good.returncode == 0, good.stdout + good.stderr
    for name in ("onnxruntime", "save-deploy"):
        assert f"{name}: 4 frames, mask agreement " in good.stdout
    altered = tmp_path / "altered"
    shutil.copytree(bundle, altered)
    logits = np.load(altered / "golden" / "mask_logits.npy")
    np.save(altered / "golden" / "mask_logits.npy", -logits)
    bad = run(script, str(altered))
    assert bad.returncode == 2 and "over the budget" in bad.stdout, bad.stdout + bad.stderr


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
