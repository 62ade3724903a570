"""A video from where fsspec finds it to a local file."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

from save_deploy.errors import DataError
from save_deploy.partials import unwritable
from save_deploy.runtime.bulk.videos import is_remote, unreadable

FULL = (errno.ENOSPC, errno.EDQUOT)


class FetchError(DataError):
    """A place that could not be read now and may be later."""


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """The video as a local file: itself, or a copy while the block runs. Raises DataError."""
    if not is_remote(uri):
        yield Path(uri)
        return
    import fsspec

    with tempfile.TemporaryDirectory(prefix="save-deploy-") as folder:
        path = Path(folder) / f"video{Path(uri).suffix[:8]}"
        try:
            files, name = fsspec.core.url_to_fs(uri)
            files.get_file(name, str(path))
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
            raise unreadable(uri, error) from error
        except Exception as error:  # every store raises its own
            if getattr(error, "errno", None) in FULL:
                raise unwritable("the copy of a video", error) from error
            said = unreadable(uri, error)
            raise FetchError(said.what, got=said.got, expected=said.expected) from error
        yield path
