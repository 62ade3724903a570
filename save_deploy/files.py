"""Files and folders that appear complete or not at all, checks of targets, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from save_deploy.errors import OutputError, SaveDeployError
from save_deploy.partials import partial_folder
from save_deploy.progress import raise_if_interrupted

ENV_CACHE = "SAVE_DEPLOY_CACHE"
_FILLED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # renaming a folder onto a filled one
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


def check_folder_target(
    target: Path, *, force: bool, is_ours: Callable[[Path], object] = lambda _: None
) -> None:
    """Raise OutputError where a folder may not be written.

    That is: it exists (without force), it is neither empty nor ours (with force: is_ours(folder) raises
    SaveDeployError for another's), it is a mount point, or its parent is not writable.
    """
    if target.exists() and not force:
        raise _exists(target, "folder")
    if target.exists():
        check_replaceable(target, is_ours)
    if os.path.ismount(target):
        raise OutputError(
            "a mount point cannot be replaced",
            got=str(target),
            expected="a folder inside it",
            hint=f"-o {target / 'bundle'}",
        )
    _check_parent(Path(os.path.realpath(target)), "-o DIR")


def check_replaceable(folder: Path, is_ours: Callable[[Path], object]) -> None:
    """Raise OutputError unless the folder is empty, or is_ours(folder) raises no SaveDeployError."""
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return
        if not folder.is_dir():
            raise OutputError("not a folder")
        is_ours(folder)
    except (SaveDeployError, OSError) as error:
        raise OutputError(
            "refusing to replace what save-deploy did not write",
            got=f"{folder}: {str(error).splitlines()[0]}",
            expected="a complete one of ours, or an empty folder",
            hint="choose another -o DIR",
        ) from error


def check_file_target(target: Path, *, force: bool) -> None:
    """Raise OutputError where a file may not be written: it exists (without force), it is a folder, or
    its parent is not writable."""
    if target.is_dir() or (target.is_file() and not force):
        raise _exists(target, "file")
    if not _is_special(target):
        _check_parent(Path(os.path.realpath(target)), "-o FILE")


def check_not_input(target: Path, *inputs: Path) -> None:
    """Raise OutputError when an output is one of the inputs, by whatever name."""
    for path in inputs:
        if target.exists() and path.exists() and target.samefile(path):
            raise OutputError(
                "output and input are the same file", got=str(target), expected="another name"
            )


@contextlib.contextmanager
def new_folder(
    target: Path, *, what: str = "the folder", is_ours: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside target; rename it to target on success, remove it otherwise.

    A link is followed. A target that is there at the end is replaced when it is empty, or when
    `is_ours` is given and raises no SaveDeployError for it; OutputError otherwise, so that of two runs
    one wins whole. A full disk and an interrupt leave nothing, missing parents included. Raises
    OutputError("`what` cannot be written") for what the system refuses.
    """
    target = Path(os.path.realpath(target))
    with partial_folder(target, what=what) as partial:
        made = partial / "new"
        made.mkdir()
        yield made
        raise_if_interrupted()
        _put_folder(made, target, partial / "old" / target.name, is_ours)


@contextlib.contextmanager
def new_file(target: Path, *, what: str = "the file", replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path with the suffix of target; rename it to target on success, remove it
    otherwise.

    A link is followed, so that its file is replaced and not the link. What is not a regular file (a
    device, a pipe) is written through. Raises OutputError("`what` cannot be written"), and
    OutputError("output exists") without `replace` where a file appeared meanwhile.
    """
    special = _is_special(target)
    real = target if special else Path(os.path.realpath(target))
    beside = Path(tempfile.gettempdir()) / target.name if special else real
    with partial_folder(beside, what=what) as folder:
        partial = folder / f"new{target.suffix}"
        yield partial
        raise_if_interrupted()
        if special:
            with partial.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        elif replace:
            os.replace(partial, real)
        else:
            _put_new_file(partial, real)


def write_text(target: Path, text: str, *, what: str = "the file") -> None:
    """UTF-8, atomically; names that are not UTF-8 are escaped. Raises OutputError."""
    write_bytes(target, text.encode(errors="backslashreplace"), what=what)


def write_bytes(target: Path, content: bytes, *, what: str = "the file") -> None:
    """Atomically. Raises OutputError."""
    with new_file(target, what=what) as partial:
        partial.write_bytes(content)


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


def _put_folder(
    made: Path, target: Path, old: Path, is_ours: Callable[[Path], object] | None
) -> None:
    while True:
        try:
            made.rename(target)  # also onto an empty folder, never onto a filled one
            return
        except OSError as error:
            if error.errno not in _FILLED:
                raise
        if is_ours is None:
            raise _exists(target, "folder")
        check_replaceable(target, is_ours)
        shutil.rmtree(old.parent, ignore_errors=True)
        old.parent.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another run moved it away first
            target.rename(old)


def _put_new_file(partial: Path, target: Path) -> None:
    try:
        os.link(partial, target)  # the one way that never replaces
    except FileExistsError as error:
        raise _exists(target, "file") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise _exists(target, "file") from error
        os.replace(partial, target)


def _is_special(target: Path) -> bool:
    """True for a device, a pipe or a socket, and for a name of an open file."""
    if str(target).startswith(("/dev/std", "/dev/fd/", "/proc/")):
        return target.exists() and not target.is_dir()
    return target.exists() and not target.is_file() and not target.is_dir()


def _exists(target: Path, kind: str) -> OutputError:
    option = "DIR" if kind == "folder" else "FILE"
    force = "" if kind == "file" and target.is_dir() else "add --force to replace it, or "
    return OutputError(
        "output exists",
        got=str(target),
        expected=f"a new {kind}",
        hint=f"{force}choose -o {option}",
    )
