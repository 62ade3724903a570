"""Files and folders that appear complete or not at all, checks of targets, and the cache folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from save_deploy.errors import OutputError
from save_deploy.progress import raise_if_interrupted

ENV_CACHE = "SAVE_DEPLOY_CACHE"
_MARK = ".partial-"  # .{target}.partial-{pid}-{random}


def check_folder_target(target: Path, *, force: bool, marker: str = "manifest.json") -> None:
    """Raise OutputError where a folder may not be written.

    That is: it exists (without force), it holds no `marker` file (with force: only our own folders are
    replaced), or its parent is not writable.
    """
    if target.exists() and not force:
        raise OutputError(
            "output exists",
            got=str(target),
            expected="a new folder",
            hint="add --force to replace it, or choose -o DIR",
        )
    if target.exists() and not (target / marker).is_file():
        raise OutputError(
            "refusing to replace a folder that is not a bundle",
            got=str(target),
            expected=f"a bundle (with {marker})",
            hint="choose -o DIR",
        )
    _check_parent(target, "-o DIR")


def check_file_target(target: Path, *, force: bool) -> None:
    """Raise OutputError where a file may not be written: it exists (without force), it is a folder, or
    its parent is not writable."""
    if target.is_dir() or (target.is_file() and not force):
        raise OutputError(
            "output exists",
            got=str(target),
            expected="a new file",
            hint="choose -o FILE" if target.is_dir() else "add --force, or choose -o FILE",
        )
    if not _is_special(target):
        _check_parent(target, "-o FILE")


@contextlib.contextmanager
def new_folder(target: Path, *, what: str = "the folder") -> Iterator[Path]:
    """Yield a temporary folder beside target; rename it to target on success, remove it otherwise.

    Every call has a temporary name of its own. An existing target is replaced at the very end. A full
    disk and an interrupt leave nothing, missing parents included. Raises OutputError("`what` cannot
    be written") for what the system refuses.
    """
    target = target.absolute()
    created = [parent for parent in target.parents if not parent.exists()]
    old = target.with_name(f".{target.name}.old-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with partial_folder(target, what=what) as partial:
            yield partial
            raise_if_interrupted()
            if target.exists():
                target.rename(old)
            partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.rename(target)
        if not target.exists():
            for folder in created:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        if isinstance(error, OSError):
            raise _unwritable(what, error) from error
        raise


@contextlib.contextmanager
def partial_folder(target: Path, *, what: str = "the folder") -> Iterator[Path]:
    """Yield a new folder beside target with a name of its own; remove what is left of it at the end.

    Folders that ended processes left for the same target are removed first. The caller renames the
    folder, or files in it. Raises OutputError for what the system refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_dead_partials(target)
        prefix = f".{target.name}{_MARK}{os.getpid()}-"
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        os.chmod(folder, 0o777 & ~_umask())  # mkdtemp's 0700 would stay on the renamed folder
    except OSError as error:
        raise _unwritable(what, error) from error
    try:
        yield folder
    except OSError as error:
        raise _unwritable(what, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def new_file(target: Path, *, what: str = "the file") -> Iterator[Path]:
    """Yield a temporary path beside target; rename it to target on success, remove it otherwise.

    A link is followed, so that its file is replaced and not the link. What is not a regular file (a
    device, a pipe) is written through. Raises OutputError("`what` cannot be written").
    """
    target = Path(os.path.realpath(target))
    special = _is_special(target)
    partial: Path | None = None
    try:
        folder = Path(tempfile.gettempdir()) if special else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        remove_dead_partials(folder / target.name)
        random = secrets.token_hex(4)
        partial = folder / f".{target.name}{_MARK}{os.getpid()}-{random}{target.suffix}"
        yield partial
        raise_if_interrupted()
        if special:
            with partial.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        else:
            os.replace(partial, target)
    except OSError as error:
        raise _unwritable(what, error) from error
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write_text(target: Path, text: str, *, what: str = "the file") -> None:
    """UTF-8, atomically. Raises OutputError."""
    write_bytes(target, text.encode(), what=what)


def write_bytes(target: Path, content: bytes, *, what: str = "the file") -> None:
    """Atomically. Raises OutputError."""
    with new_file(target, what=what) as partial:
        partial.write_bytes(content)


def remove_dead_partials(target: Path) -> None:
    """Remove what ended processes left beside a target; partial files of living ones stay."""
    prefix = f".{target.name}{_MARK}"
    with contextlib.suppress(OSError):
        for entry in os.scandir(target.parent):
            pid = entry.name.removeprefix(prefix).partition("-")[0]
            if entry.name.startswith(prefix) and pid.isdigit() and not psutil.pid_exists(int(pid)):
                remove(Path(entry.path))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def cache_root() -> Path:
    """Cache folder of this project: $SAVE_DEPLOY_CACHE, $XDG_CACHE_HOME/save-deploy,
    ~/.cache/save-deploy, or, without a home, one for temporary files that is this user's alone."""
    if own := os.environ.get(ENV_CACHE):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "save-deploy"
    try:
        return Path.home() / ".cache" / "save-deploy"
    except RuntimeError:  # no HOME and a user the system does not know, as in containers
        return _private_folder()


def cache_folder(*parts: str) -> Path | None:
    """A folder below the cache, made if need be; None where nothing may be written (a read-only
    container)."""
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def keep_in_cache(target: Path, write: Callable[[Path], object]) -> bool:
    """Write a cache file atomically with write(path); False, and no error, where it cannot be."""
    try:
        with new_file(target) as partial:
            write(partial)
    except OutputError:
        return False
    return True


def _private_folder() -> Path:
    """Below the folder for temporary files, where others may have put one of the same name: what they
    wrote there must not be loaded, so then a path where nothing can be."""
    with contextlib.suppress(OSError, AttributeError):  # no folder can be made; Windows has no uid
        folder, uid = Path(tempfile.gettempdir()), os.getuid()
        folder /= f"save-deploy-{uid}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077:
            return folder
    return Path(os.devnull, "save-deploy")


def _check_parent(target: Path, option: str) -> None:
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:  # permission bits prove nothing: read-only mounts and full disks show when written to
        with tempfile.TemporaryDirectory(dir=parent, prefix=".save-deploy-"):
            pass
    except OSError as error:
        raise OutputError(
            "output folder is not writable",
            got=str(error),
            expected="a folder you may write to",
            hint=f"choose {option}",
        ) from error


def _is_special(target: Path) -> bool:
    """True for a device, a pipe or a socket."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(what: str, error: OSError) -> OutputError:
    return OutputError(
        f"{what} cannot be written",
        got=str(error),
        expected="a writable folder with enough space",
        hint="free some space, or choose another place with -o",
    )
