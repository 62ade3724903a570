"""Protection of child processes from modules in the current folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "PYTHONSAFEPATH"


@contextmanager
def safe_path() -> Iterator[None]:
    """Set PYTHONSAFEPATH for Python processes started in this context, and restore it afterwards.

    multiprocessing starts its children with `python -c`, which puts the current folder first on
    sys.path: a module in an untrusted folder must not replace an installed one.
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
