"""Where a run may write, checked before any work."""

from __future__ import annotations

import os
from pathlib import Path

from save_deploy.errors import OutputError


def check_target(path: Path, *, source: Path, force: bool) -> None:
    """Raise OutputError when a file cannot or should not be written there."""
    if path.exists() and source.exists() and path.samefile(source):
        raise OutputError(
            "output and input are the same file", got=str(path), expected="another name"
        )
    if path.is_dir():
        raise OutputError("the output is a folder", got=str(path), expected="a file")
    if path.exists() and not force:
        raise OutputError(
            "the output exists", got=str(path), expected="a new file", hint="add --force"
        )
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raise OutputError when the folder of an output is missing or not writable."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(
            "the output's folder does not exist", got=str(folder), hint=f"mkdir -p {folder}"
        )
    if not os.access(folder, os.W_OK):
        raise OutputError(
            "the output's folder is not writable", got=str(folder), expected="a folder of yours"
        )


def check_masks(folder: Path, *, force: bool) -> None:
    """Raise OutputError unless the folder is new or empty, or with force one of masks only."""
    check_folder(folder)
    if not folder.exists():
        return
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else [folder.name]
    masks_only = all(name.endswith(".png") and name[:-4].isdigit() for name in names)
    if names and not (force and masks_only and folder.is_dir()):
        raise OutputError(
            "the folder of masks is not empty" if folder.is_dir() else "not a folder",
            got=str(folder),
            expected="a new or empty folder",
            hint="add --force" if masks_only else "choose another name",
        )
