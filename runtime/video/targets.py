"""Checks of a run's output paths, before any work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from save_deploy.errors import DataError, OutputError
from save_deploy.files import check_file_target, check_not_input


def check_target(path: Path, *, source: Path, force: bool) -> None:
    """Raise OutputError if the file cannot be written or must not be replaced."""
    check_not_input(path, source)
    if path.is_dir():
        raise OutputError("the output is a folder", got=str(path), expected="a file")
    _check_parent(path)
    check_file_target(path, force=force)


def check_distinct(paths: Iterable[Path]) -> None:
    """Raise DataError for two outputs that are one file, or of which one contains the other."""
    places = [Path(os.path.realpath(path)) for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise DataError("two outputs have the same name", got=str(place), expected="two names")
        if any(other in place.parents for other in places):  # a folder of masks holds nothing else
            raise DataError(
                "an output inside another one", got=str(place), expected="another folder"
            )


def check_masks(folder: Path, *, force: bool) -> None:
    """Raise OutputError unless the folder is new or empty; with force it may contain masks."""
    _check_parent(folder)
    if os.path.ismount(folder):
        raise OutputError(
            "a mount point cannot be replaced", got=str(folder), expected="a folder inside it"
        )
    if not folder.exists():
        return
    ours = folder.is_dir() and not _others(folder)
    if not folder.is_dir() or (any(folder.iterdir()) and not (force and ours)):
        raise OutputError(
            "the folder of masks is not empty" if folder.is_dir() else "not a folder",
            got=str(folder),
            expected="a new or empty folder",
            hint="add --force" if ours else "choose another name",
        )


@contextlib.contextmanager
def one_at_a_time(targets: Iterable[Path]) -> Iterator[None]:
    """Lock the targets' folders while outputs are renamed, so that outputs of two runs do not mix.

    No effect on file systems without locks.
    """
    with contextlib.ExitStack() as locks:
        if sys.platform != "win32":
            import fcntl

            for folder in sorted(
                {os.path.realpath(target.absolute().parent) for target in targets}
            ):
                with contextlib.suppress(OSError):
                    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                    locks.callback(os.close, descriptor)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def masks_only(folder: Path) -> None:
    """Raise OutputError for a folder that contains other files than masks of a run."""
    if others := _others(folder):
        raise OutputError(f"it contains {others[0]}, which is not a mask")


def _others(folder: Path) -> list[str]:
    """Return the names in a folder that are not names of masks."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if not (path.suffix == ".png" and path.stem.isdecimal() and path.is_file())
    )


def _check_parent(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(
            "the output's folder does not exist", got=str(folder), hint=f"mkdir -p {folder}"
        )
