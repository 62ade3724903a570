"""Terminal tables of plain text, without markup and escape sequences."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from save_deploy.terminal import plain, visible

WIDTH = 132


class _Console(Console):
    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(visible(text), **how)


def new_console(width: int = WIDTH, *, stderr: bool = False) -> Console:
    """Return a console with the width of the terminal, or `width` in a log."""
    file = plain(sys.stderr if stderr else sys.stdout)
    return _Console(
        file=file,
        width=None if file.isatty() else width,
        markup=False,
        emoji=False,
        highlight=False,
    )
