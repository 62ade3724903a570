"""The package out of a copied tree, without an install: pyproject.toml's package-dir as links.

The standard library alone, so that it can run before anything is found.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BESIDE = ("export", "runtime", "calibration")  # folders of the package beside save_deploy/
DRY = "SAVE_GPU_DRY"  # set to 1: GPU tests run on the CPU where they can, to see that they run


def is_dry() -> bool:
    return os.environ.get(DRY) == "1"


def is_installed() -> bool:
    """Whether the whole package is found, and not only save_deploy/ in the working directory."""
    try:
        return importlib.util.find_spec("save_deploy.runtime") is not None
    except ModuleNotFoundError:
        return False


def lay(folder: Path, root: Path = ROOT) -> Path:
    """The package as a folder of links; one that is there is made anew."""
    package = folder / "save_deploy"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in (root / "save_deploy").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name in BESIDE:
        (package / name).symlink_to(root / name)
    return folder


def use_tree(root: Path = ROOT) -> Path | None:
    """Make `save_deploy` of this tree importable here and in child processes, where it is not
    installed. -> the folder of links, None where none was needed."""
    if is_installed():
        return None
    for name in [n for n in sys.modules if n.partition(".")[0] == "save_deploy"]:
        del sys.modules[name]  # only the part that lies in the working directory
    folder = lay(Path(tempfile.mkdtemp(prefix="save-deploy-tree-")), root)
    sys.path.insert(0, str(folder))
    kept = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *kept])
    importlib.invalidate_caches()
    return folder


if __name__ == "__main__":  # python tree.py FOLDER
    lay(Path(sys.argv[1]))
