"""Temporary folders for work that is moved to its target when it is complete.

A killed process leaves one behind; the next process that writes to the same target removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from save_deploy.errors import OutputError, SaveDeployError
from save_deploy.progress import raise_if_interrupted, shielded

_MARK = ".partial-"  # .{target}.partial-{random}, a folder locked by its process
_RANDOM = re.compile(r"[0-9a-f]{8}")
_NAME_CHARS = 50  # characters of the target's name, so that the partial name is not too long
_FULL_BYTES = 65_536
_ATTEMPTS = 100  # to create a folder that other processes remove in the same moment
T = TypeVar("T")


@contextlib.contextmanager
def partial_folder(target: Path, *, what: str = "the folder") -> Iterator[Path]:
    """Yield a new uniquely named folder beside target; remove it at the end.

    Partial folders of dead processes for the same target are removed first. The caller renames the
    folder, or files in it. Raises OutputError for errors of the system, including those that a
    library reports in its own way.
    """
    created = list[Path]()
    with contextlib.ExitStack() as cleanup, contextlib.ExitStack() as shield:
        cleanup.push(lambda kind, *_: _remove_empty(created) if kind else None)
        shield.enter_context(shielded())
        try:
            remove_dead_partials(target)
            folder, lock = make_in(target.parent, lambda: _locked_folder(target), created)
        except OSError as error:
            raise unwritable(what, error) from error
        cleanup.callback(_give_back, target, folder, lock)
        shield.close()
        raise_if_interrupted()
        try:
            yield folder
        except Exception as error:
            if isinstance(error, OSError) or _is_of_disk(error, folder):
                raise unwritable(what, error) from error
            raise


@contextlib.contextmanager
def replaced_files(folder: Path, *, what: str = "the files") -> Iterator[Path]:
    """Yield a partial folder; at the end its files appear in `folder` and replace those of their names.

    Other files of the folder stay. Raises OutputError("`what` cannot be written").
    """
    with partial_folder(folder / "files", what=what) as partial:
        yield partial
        raise_if_interrupted()
        for path in sorted(partial.iterdir()):
            path.replace(folder / path.name)


@contextlib.contextmanager
def filled_folder(folder: Path, *, what: str = "the folder") -> Iterator[None]:
    """Create a folder that is filled file by file; after an error remove it if it is empty.

    Raises OutputError("`what` cannot be written") when it cannot be created.
    """
    created = list[Path]()
    try:
        make_in(folder, lambda: None, created)
    except OSError as error:
        _remove_empty(created)
        raise unwritable(what, error) from error
    try:
        yield
    except BaseException:
        _remove_empty(created)
        raise


def make_in(folder: Path, make: Callable[[], T], created: list[Path] | None = None) -> T:
    """Create a folder with its parents and return make(), which makes an entry in it.

    Another process may remove the folder while it is empty; then both are done again.
    created: takes up the folders that did not exist, each before its parents. Raises OSError.
    """
    place = folder.absolute()

    def attempt() -> T:
        if created is not None:
            created.extend(path for path in (place, *place.parents) if not path.exists())
        folder.mkdir(parents=True, exist_ok=True)
        return make()

    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return attempt()
    return attempt()


def dead_partials(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield the partial folders in `folder` that no living process has locked.

    Each is (path, start of the target's name, descriptor that locks it until the next iteration).
    """
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            name = _target_of(path)
            if name is None or path.is_symlink() or not path.is_dir():
                continue
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                if (lock := _lock(path)) is not None:
                    try:
                        yield path, name, lock
                    finally:
                        os.close(lock)


def living_partials(folders: Iterable[Path]) -> bool:
    """Whether a living process writes to one of these folders."""
    for folder in folders:
        dead = {path for path, _, _ in dead_partials(folder)}
        with contextlib.suppress(OSError):
            if {path for path in folder.iterdir() if _MARK in path.name} - dead:
                return True
    return False


def remove_dead_partials(target: Path) -> None:
    """Remove partial folders of dead processes beside a target; those of living ones stay.

    A target that a dead process was replacing is restored.
    """
    for path, _, _ in dead_partials(target.parent):
        if is_partial_of(path, target):
            _give_back(target, path, None)


def is_partial_of(path: Path, target: Path) -> bool:
    """Return True for the name of a partial folder of a target in the same folder."""
    return _target_of(path) == target.name[:_NAME_CHARS]


def _target_of(path: Path) -> str | None:
    """Return the start of the target's name for a partial folder, None for another path."""
    name, mark, random = path.name.rpartition(_MARK)
    ours = name.startswith(".") and mark and _RANDOM.fullmatch(random)
    return name[1:] if ours else None


def _locked_folder(target: Path) -> tuple[Path, int | None]:
    """Create a folder beside target; return it and the descriptor that keeps it locked.

    The lock lasts as long as the process. A process id would be meaningless in another container.
    """
    prefix = f".{target.name[:_NAME_CHARS]}{_MARK}"
    while True:
        folder = target.with_name(prefix + secrets.token_hex(4))
        try:
            folder.mkdir()
            return folder, _lock(folder)
        except (FileExistsError, BlockingIOError):
            continue  # another process removed it before it was locked
        except FileNotFoundError:
            if not target.parent.exists():
                raise


def _lock(folder: Path) -> int | None:
    """Lock a folder and return its descriptor, None on a file system without locks.

    Raises BlockingIOError when another process has locked it, and FileNotFoundError when it is
    gone.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # another process may have removed it, and released it, before it was locked here
        if not os.path.samestat(os.fstat(descriptor), os.lstat(folder)):
            raise FileNotFoundError(folder)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None
    return descriptor


def _give_back(target: Path, folder: Path, lock: int | None) -> None:
    """Remove a partial folder; restore the old target in it when there is no new one."""
    with shielded():
        old = folder / "old" / target.name
        if old.exists() and not target.exists():
            with contextlib.suppress(OSError):
                old.rename(target)
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _is_of_disk(error: Exception, folder: Path) -> bool:
    """Return True for an error of a Rust or C++ library that is caused by the disk.

    Its text contains the system's error number, or the disk is full.
    """
    if isinstance(error, SaveDeployError):
        return False
    with contextlib.suppress(OSError):
        full = shutil.disk_usage(folder).free < _FULL_BYTES
        return full or "(os error " in str(error)
    return False


def unwritable(what: str, error: Exception) -> OutputError:
    """Return the error for an output that cannot be written."""
    return OutputError(
        f"{what} cannot be written",
        got=str(error),
        expected="a writable folder with enough space",
        hint="free some space, or choose another path with -o",
    )
