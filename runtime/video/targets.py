"""Where a run may write: refusals before any work, and names for what is not complete."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from save_deploy.errors import DataError


def check_target(path: Path, *, source: Path, force: bool) -> None:
    """Raise DataError when a file cannot or should not be written there."""
    if path.exists() and source.exists() and path.samefile(source):
        raise DataError(
            "output and input are the same file", got=str(path), expected="another name"
        )
    if path.is_dir():
        raise DataError("the output is a folder", got=str(path), expected="a file")
    if path.exists() and not force:
        raise DataError(
            "the output exists", got=str(path), expected="a new file", hint="add --force"
        )
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raise DataError when the folder of an output is missing or not writable."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise DataError(
            "the output's folder does not exist", got=str(folder), hint=f"mkdir -p {folder}"
        )
    if not os.access(folder, os.W_OK):
        raise DataError(
            "the output's folder is not writable", got=str(folder), expected="a folder of yours"
        )


def check_masks(folder: Path, *, force: bool) -> None:
    """Raise DataError unless the folder is new or empty, or with force one of masks only."""
    check_folder(folder)
    if not folder.exists():
        return
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else [folder.name]
    masks_only = all(name.endswith(".png") and name[:-4].isdigit() for name in names)
    if names and not (force and masks_only and folder.is_dir()):
        raise DataError(
            "the folder of masks is not empty" if folder.is_dir() else "not a folder",
            got=str(folder),
            expected="a new or empty folder",
            hint="add --force" if masks_only else "choose another name",
        )


def partial_of(path: Path) -> Path:
    """Where it is written until it is complete."""
    return path.with_name(path.name + ".partial")


def removed(path: Path) -> None:
    """A file or a folder of ours, gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
