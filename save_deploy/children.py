"""Child processes of ours import nothing from the current folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "PYTHONSAFEPATH"


@contextmanager
def safe_path() -> Iterator[None]:
    """Set PYTHONSAFEPATH for Python processes started within, and restore its value afterwards.

    multiprocessing starts its children with `python -c`, which puts the current folder first on
    sys.path: a folder of a stranger must not replace a module.
    """
    before = os.environ.get(_NAME)
    os.environ[_NAME] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_NAME, None)
        else:
            os.environ[_NAME] = before
