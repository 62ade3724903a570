"""Support for bundles of symbolic links, as in the cache of Hugging Face.

Backends refuse weights in another folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from save_deploy.errors import BackendError
from save_deploy.files import cache_folder


@contextmanager
def gathered(path: Path, weights: Sequence[str]) -> Iterator[Path]:
    """Yield an ONNX file that is in one folder with its weights.

    It is the file itself when that is the case already. Otherwise hard links to the targets of the
    links are created, or copies when the cache is on another disk. They are removed at the end,
    because sessions keep what they read. Raises BackendError when there is no space for copies.
    """
    real = path.parent.resolve()
    names = (path.name, *weights)
    if not weights or all((path.parent / name).resolve() == real / name for name in names):
        yield path
        return
    with ExitStack() as stack:
        try:
            folder = _linked(path.parent, names, stack) or _copied(path.parent, names, stack)
        except OSError as error:
            raise BackendError(
                f"the weights of {path.name} cannot be brought into one folder",
                got=str(error),
                expected="files, or links on the disk of the cache folder",
                hint="copy the bundle to a folder of files: cp -rL BUNDLE DIR",
            ) from error
        yield folder / path.name


def _linked(source: Path, names: Sequence[str], stack: ExitStack) -> Path | None:
    place = cache_folder("links")
    if place is None:
        return None
    folder = Path(stack.enter_context(_temporary(place)))
    try:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link((source / name).resolve(), folder / name)
    except OSError:  # another disk, or a system that forbids links to files of others
        return None
    return folder


def _copied(source: Path, names: Sequence[str], stack: ExitStack) -> Path:
    folder = Path(stack.enter_context(_temporary(None)))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    return folder


def _temporary(place: Path | None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=place, prefix="bundle-", ignore_cleanup_errors=True)
