"""Nothing of the current folder, a bundle or a dataset is executed, whichever verb stands in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from save_deploy.cli import GROUPS, VERBS
from save_deploy.extras import EXTRA_OF
from tests.runtime.test_polygraphy import small_bundle

MODULES = (
    "sitecustomize", "usercustomize", "save_deploy", "runtime", "export", "calibration", "golden",
    "json", "multiprocessing", "runpy", "random", "pickle", "rich", "typer", "click", "numpy", "PIL",
    "av", "soundfile", "psutil", "engines", *EXTRA_OF,
)  # fmt: skip
# In one process, which starts where the installed program would: imports happen as late as there.
PROGRAM = """
import json, sys
from save_deploy import cli
if __name__ == "__main__":  # else it is a child of multiprocessing
    for verb in json.loads(sys.stdin.read()):
        sys.argv = ["save-deploy", *verb]
        print("-", *verb, file=sys.__stderr__, flush=True)
        try:
            cli.main()
        except SystemExit as ended:
            assert ended.code in (0, 1, 2, 3), (verb, ended.code)
"""


def plant(folder: Path, mark: Path) -> None:
    text = f"open({str(mark)!r}, 'a').write(__file__ + '\\n')\n"
    for name in MODULES:
        (folder / f"{name}.py").write_text(text)
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(text)
        (folder / name / "__main__.py").write_text(text)


@pytest.mark.slow
def test_children_of_the_library_are_safe_too(tmp_path: Path) -> None:
    """A program elsewhere that starts a child of multiprocessing while it stands in such a folder."""
    mark, folder = tmp_path / "mark", tmp_path / "folder"
    folder.mkdir()
    plant(folder, mark)
    program = tmp_path / "elsewhere" / "program.py"
    program.parent.mkdir()
    for start, executed in (("with safe_path(): child.start()", False), ("child.start()", True)):
        program.write_text(
            "import multiprocessing, os\n"
            "from save_deploy.children import safe_path\n"
            "if __name__ == '__main__':\n"
            "    child = multiprocessing.get_context('spawn').Process(target=os.getpid)\n"
            f"    {start}\n"
            "    child.join()\n"
            "    assert 'PYTHONSAFEPATH' not in os.environ\n"
        )
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
        subprocess.run([sys.executable, str(program)], cwd=folder, env=environment, timeout=60)
        assert mark.exists() == executed


@pytest.mark.slow
@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_nothing_of_the_folder_is_executed(tmp_path: Path, few: bool) -> None:
    """few: those that start children or read most of a bundle, without torch."""
    mark, bundle = tmp_path / "mark", small_bundle(tmp_path / "bundle")
    plant(bundle, mark)
    here = str(bundle)
    verbs = [
        ["export", "model.onnx", "-o", "new"],
        ["calibrate", "model.onnx", "-o", "new.json"],
        ["build", here],
        ["inspect", here],
        ["merge", "model.onnx"],
        ["bench", "model.onnx", "--what", "eager"],
        ["compare", here],
        ["train", "--init", "model.onnx", "-o", "new", "--steps", "1"],
        ["eval", "model.onnx"],
        ["mask", here, "frame.png", "sound.wav", "-o", "new.png"],
        ["run", here, "film.mp4", "-o", "new.mp4"],
        ["verify", here],
        ["doctor", here],
        ["polygraphy", here, "-o", "new"],
        ["triton", here, "-o", "repo"],
        ["publish", here, "-o", "hub"],
        ["masks", here, "--export", "coco", "-o", "new.json"],
        ["web", here, "-o", "site"],
        ["systems"],
        ["recipes"],
        ["data", "check", here],
        ["data", "scenes", "-o", "new", "--train", "1", "--val", "0", "--test", "0"],
        ["data", "stamps", "-o", "new", "--train", "0", "--val", "0", "--test", "0"],
        ["cache", "ls"],
        ["cache", "rm"],
        ["checkpoint", "inspect", "model.onnx"],
        ["checkpoint", "convert", "model.onnx", "-o", "new.safetensors"],
    ]
    groups = {f"{group} {verb}" for group, (_, named) in GROUPS.items() for verb in named}
    known = {*VERBS, *groups}
    assert {v[0] if v[0] in VERBS else " ".join(v[:2]) for v in verbs} == known
    if few:
        verbs = [v for v in verbs if v[0] in ("build", "inspect", "verify", "polygraphy")]
    program = tmp_path / "elsewhere" / "program.py"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program)], input=json.dumps(verbs), cwd=bundle, capture_output=True,
        text=True, timeout=300, env={**os.environ, "SAVE_DEPLOY_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert not mark.exists(), mark.read_text() + done.stderr
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "No such option" not in done.stderr and "Missing" not in done.stderr, done.stderr
