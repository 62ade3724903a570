"""The Polygraphy script: what is written runs, passes on a good bundle and fails on an altered one."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from save_deploy.errors import BundleError
from save_deploy.runtime.polygraphy_script import write_script
from tests.runtime.engines import with_engine


def test_script_is_python_and_names_the_bundle(bundle: Path, tmp_path: Path) -> None:
    before = {path.name for path in bundle.iterdir()}
    written = write_script(bundle, tmp_path / "compare.py")
    ast.parse(written.read_text())
    assert str(bundle.resolve()) in written.read_text()
    assert {path.name for path in bundle.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["compare.py"]
    with pytest.raises(BundleError, match="not a bundle"):
        write_script(tmp_path, tmp_path / "other.py")


def test_engine_of_the_bundle_is_named(bundle: Path, tmp_path: Path) -> None:
    folder, _ = with_engine(bundle, tmp_path)
    text = write_script(folder, tmp_path / "compare.py").read_text()
    assert "ENGINE = 'model.rtx.plan'" in text and "if 'tensorrt_rtx' ==" in text


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
