"""Options declared once: a field of a dataclass says how it stands on the command line.

    @dataclass(frozen=True, kw_only=True)
    class SearchOptions:
        clips: int = option("--search-clips", default=40, low=4, help="Validation clips.")

The command line makes the option from the field (cli/takes.py), and Python code sets the same field.
This module imports nothing of the command line, so options cost a library nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KEY = "option"


@dataclass(frozen=True)
class Option:
    """How a field stands on the command line.

    names: `--calib-data`, or none for a positional argument; panel: its heading in --help, empty for
    the first one; low, high: allowed range; default_text: shown instead of the default, empty for
    nothing; parse: text -> value of the field, for fields that no single option type fits, with
    `text` as the default; needs: option names of which one must be given beside it; excludes: option
    names that cannot be.
    """

    help: str
    names: tuple[str, ...] = ()
    panel: str = ""
    low: float | None = None
    high: float | None = None
    metavar: str | None = None
    default_text: str | None = None
    parse: Callable[[str], Any] | None = None
    text: str = ""
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


def option(*names: str, help: str, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    """A dataclass field with this option. more: the other fields of Option."""
    how = Option(help, names, **more)
    return dataclasses.field(default=default, metadata={KEY: how})
