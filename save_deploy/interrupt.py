"""Whether work was kept on disk that the same command takes up again."""

from __future__ import annotations

_kept = False


def keep(kept: bool = True) -> None:
    """Say that the same command would go on from here; False when it is finished."""
    global _kept
    _kept = kept


def has_kept() -> bool:
    return _kept
