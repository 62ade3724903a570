"""Ctrl-C that cannot get lost.

A KeyboardInterrupt raised while Python runs a callback or a destructor is printed and forgotten by
the interpreter (libraries have many of both). So the wish to stop is remembered, and asked for again
between stages and before anything is put in its place. Beside it: whether work was kept on disk that
the same command takes up again.
"""

from __future__ import annotations

import signal
from types import FrameType

_wished = False
_kept = False


def listen() -> None:
    """Take SIGINT (unless the shell had it ignored, as for background jobs) and SIGTERM."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def raise_if_wished() -> None:
    """KeyboardInterrupt when an earlier one got lost."""
    if _wished:
        raise KeyboardInterrupt


def keep(kept: bool = True) -> None:
    """Say that the same command would go on from here; False when it is finished."""
    global _kept
    _kept = kept


def has_kept() -> bool:
    return _kept


def _stop(_signal: int, _frame: FrameType | None) -> None:
    global _wished
    _wished = True
    raise KeyboardInterrupt
