"""Atomic writing of files and folders, checks of output paths, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from save_deploy.errors import OutputError, SaveDeployError
from save_deploy.partials import partial_folder, unwritable
from save_deploy.progress import raise_if_interrupted

ENV_CACHE = "SAVE_DEPLOY_CACHE"
_FILLED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # rename to a non-empty folder
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


def check_folder_target(
    target: Path, *, force: bool, is_ours: Callable[[Path], object] = lambda _: None
) -> None:
    """Raise OutputError when a folder may not be written.

    This is the case when it exists (without force), when it is neither empty nor ours (with force;
    is_ours(folder) raises SaveDeployError for other folders), when it is a mount point, or when its
    parent is not writable.
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
    """Raise OutputError unless the folder is empty or is_ours(folder) accepts it.

    is_ours: raises SaveDeployError for a folder that save-deploy did not write.
    """
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return
        if not folder.is_dir():
            raise OutputError("not a folder")
        is_ours(folder)
    except (SaveDeployError, OSError) as error:
        raise OutputError(
            "refusing to replace a folder that save-deploy did not write",
            got=f"{folder}: {str(error).splitlines()[0]}",
            expected="a complete folder of save-deploy, or an empty one",
            hint="choose another -o DIR",
        ) from error


def check_file_target(target: Path, *, force: bool) -> None:
    """Raise OutputError when a file may not be written.

    This is the case when it exists (without force), when it is a folder, or when its parent is not
    writable.
    """
    if target.is_dir() or (target.is_file() and not force):
        raise _exists(target, "file")
    if not _is_special(target):
        _check_parent(Path(os.path.realpath(target)), "-o FILE")


def check_results_target(
    folder: Path, names: Iterable[str], *, force: bool, option: str = "-o DIR"
) -> None:
    """Raise OutputError when a folder holds results of these names (without force).

    Other files may lie in the folder: results are written beside them.
    """
    found = [name for name in names if (folder / name).exists()]
    if found and not force:
        raise OutputError(
            "output exists",
            got=f"{', '.join(found)} in {folder}",
            expected="a folder without them",
            hint=f"add --force to replace them, or choose {option}",
        )


def check_not_input(target: Path, *inputs: Path) -> None:
    """Raise OutputError when an output is one of the inputs, even under another name."""
    for path in inputs:
        if target.exists() and path.exists() and target.samefile(path):
            raise OutputError(
                "output and input are the same file", got=str(target), expected="another name"
            )


def check_not_of_bundle(target: Path, bundle: Path) -> None:
    """Raise OutputError when an output would replace a file of the bundle in use."""
    inside = os.path.realpath(bundle) in map(str, Path(os.path.realpath(target)).parents)
    if inside and os.path.exists(target):
        raise OutputError(
            "the output is a file of the bundle", got=str(target), expected="another folder"
        )


@contextlib.contextmanager
def new_folder(
    target: Path, *, what: str = "the folder", is_ours: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside target; rename it to target on success, else remove it.

    A link is followed. A target that exists at the end is replaced if it is empty, or if `is_ours`
    is given and accepts it; otherwise OutputError, so that one of two concurrent runs wins
    completely. After a full disk or an interrupt nothing is left, including created parents. Raises
    OutputError("`what` cannot be written") for errors of the system.
    """
    target = _followed(target, what)
    with partial_folder(target, what=what) as partial:
        made = partial / "new"
        made.mkdir()
        yield made
        raise_if_interrupted()
        _put_folder(made, target, partial / "old" / target.name, is_ours)


@contextlib.contextmanager
def new_file(target: Path, *, what: str = "the file", replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path with target's suffix; rename it to target on success, else remove it.

    A link is followed, so that its file is replaced and not the link. A device or pipe is written
    to instead. Raises OutputError("`what` cannot be written"), and, without `replace`,
    OutputError("output exists") when the file appeared meanwhile.
    """
    special = _is_special(target)
    real = target if special else _followed(target, what)
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
    """Write UTF-8 text atomically; undecodable bytes of file names are escaped.

    Raises OutputError.
    """
    write_bytes(target, text.encode(errors="backslashreplace"), what=what)


def write_bytes(target: Path, content: bytes, *, what: str = "the file") -> None:
    """Write bytes atomically. Raises OutputError."""
    with new_file(target, what=what) as partial:
        partial.write_bytes(content)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content. A missing path is ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def cache_root() -> Path:
    """Return the cache folder of save-deploy.

    $SAVE_DEPLOY_CACHE, $XDG_CACHE_HOME/save-deploy, ~/.cache/save-deploy, or, without a home, a
    private temporary folder of this user.
    """
    if own := os.environ.get(ENV_CACHE):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "save-deploy"
    try:
        return Path.home() / ".cache" / "save-deploy"
    except RuntimeError:  # no HOME and an unknown user, as in containers
        return _private_folder()


def cache_folder(*parts: str) -> Path | None:
    """Create and return a folder in the cache, or None when it is not writable."""
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def keep_in_cache(target: Path, write: Callable[[Path], object]) -> bool:
    """Write a cache file atomically with write(path). Returns False when it cannot be written."""
    try:
        with new_file(target) as partial:
            write(partial)
    except (OutputError, OSError):  # OSError: a folder that may not be searched
        return False
    return True


def _private_folder() -> Path:
    """Return a folder of this user only, below the folder for temporary files.

    Another user may have created a folder of the same name, whose content must not be loaded. Then
    the result is a path that cannot exist.
    """
    with contextlib.suppress(OSError, AttributeError):  # no folder can be made; Windows has no uid
        folder, uid = Path(tempfile.gettempdir()), os.getuid()
        folder /= f"save-deploy-{uid}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077:
            return folder
    return Path(os.devnull, "save-deploy")


def _followed(target: Path, what: str) -> Path:
    """What a link leads to, also where nothing is there yet. Raises OutputError for a loop of links."""
    real = Path(os.path.realpath(target))
    if real.is_symlink():
        raise unwritable(what, OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target)))
    return real


def _check_parent(target: Path, option: str) -> None:
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:  # permission bits do not show read-only mounts and full disks, so write to it
        with tempfile.TemporaryDirectory(dir=parent, prefix=".save-deploy-"):
            pass
    except OSError as error:
        raise OutputError(
            "output folder is not writable",
            got=str(error),
            expected="a writable folder",
            hint=f"choose {option}",
        ) from error


def _put_folder(
    made: Path, target: Path, old: Path, is_ours: Callable[[Path], object] | None
) -> None:
    """Rename the new folder to target; replace an empty folder or one that is_ours accepts."""
    while True:
        try:
            made.rename(target)  # replaces an empty folder, raises for a non-empty one
            return
        except OSError as error:
            if error.errno not in _FILLED:
                raise
        if is_ours is None:
            raise _exists(target, "folder")
        check_replaceable(target, is_ours)
        shutil.rmtree(old.parent, ignore_errors=True)
        old.parent.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another run moved it first
            target.rename(old)


def _put_new_file(partial: Path, target: Path) -> None:
    """Move a file to target without replacing an existing file."""
    try:
        os.link(partial, target)  # the only call that never replaces a file
    except FileExistsError as error:
        raise _exists(target, "file") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise _exists(target, "file") from error
        os.replace(partial, target)


def _is_special(target: Path) -> bool:
    """Return True for a device, a pipe, a socket, or the name of an open file."""
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
