"""A folder that appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from save_deploy import interrupt
from save_deploy.errors import ExportError


def check_target(target: Path, *, force: bool) -> None:
    """Raise ExportError when `target` exists (without force) or its parent cannot be written."""
    if target.exists() and not force:
        raise ExportError(
            "output exists",
            got=str(target),
            expected="a new folder",
            hint="add --force to replace it, or choose -o DIR",
        )
    if target.exists() and not (target / "manifest.json").is_file():
        raise ExportError(
            "refusing to replace a folder that is not a bundle",
            got=str(target),
            expected="a bundle (with manifest.json)",
        )
    _check_parent(target)


def check_file_target(target: Path, *, force: bool) -> None:
    """The same for a file. Raise ExportError also when `target` is a folder."""
    if target.is_dir() or (target.exists() and not force):
        raise ExportError(
            "output exists",
            got=str(target),
            expected="a new file",
            hint="choose -o FILE" if target.is_dir() else "add --force, or choose -o FILE",
        )
    _check_parent(target)


def _check_parent(target: Path) -> None:
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:  # a permission bit is no proof: read-only mounts and full disks show only when written to
        with tempfile.TemporaryDirectory(dir=parent, prefix=".save-deploy-"):
            pass
    except OSError as error:
        raise ExportError(
            "output folder is not writable",
            got=str(error),
            expected="a folder you may write to",
            hint="choose -o DIR",
        ) from error


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside target; rename it to target on success, remove it otherwise.

    An existing target is replaced only at the very end. A full disk and an interrupt leave nothing.
    """
    target = target.absolute()
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    created = _missing_parents(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        interrupt.raise_if_wished()
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        if not target.exists():
            for folder in created:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        if isinstance(error, OSError):
            raise ExportError(
                "the bundle cannot be written",
                got=str(error),
                expected="a writable folder with enough space",
                hint="choose -o DIR",
            ) from error
        raise


def _missing_parents(target: Path) -> list[Path]:
    """Parents of target that do not exist yet, innermost first."""
    return [parent for parent in target.parents if not parent.exists()]
