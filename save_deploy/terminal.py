"""Safe terminal output: text from files is shown, but never interpreted.

Names and manifests from others can contain escape sequences, and bytes that are not text. The
command line replaces sys.stdout and sys.stderr once, and all output goes through them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from typing import Any, TextIO, cast

from save_deploy.errors import OutputError

# C0 except tab and newline, DEL, C1, line separators, bidirectional marks, lone surrogates
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def visible(text: str) -> str:
    r"""Return the text with control characters and non-UTF-8 bytes as escapes: `\x1b`."""
    return _CONTROL.sub(_escape, text)


def protect_terminal() -> None:
    """Replace sys.stdout and sys.stderr with streams that escape control characters.

    A stream that cannot be written (full disk, closed pipe) discards further output, so that work
    continues; check_written reports it at the end.
    """
    for number in range(3):  # the next opened file would get the number of a closed stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = cast(TextIO, _Stream(sys.stdout))
    sys.stderr = cast(TextIO, _Stream(sys.stderr))


def check_written() -> None:
    """Raise OutputError when standard output could not be written."""
    stream: Any = sys.stdout
    if isinstance(stream, _Stream):
        stream.flush()
        if stream.failure is not None:
            raise OutputError(
                "standard output cannot be written",
                got=str(stream.failure),
                expected="a terminal, or a file or pipe with room",
                hint="check where standard output goes",
            )


def plain(stream: TextIO) -> TextIO:
    """Return the stream without escaping, for our own control characters."""
    return cast(TextIO, stream.plain) if isinstance(stream, _Stream) else stream


class _Stream:
    """Text stream for print and logging; other attributes are those of the real stream."""

    def __init__(self, real: TextIO | None, *, escapes: bool = True) -> None:
        self.escapes = escapes
        self.failure: Exception | None = None
        self.plain = self if not escapes else _Stream(real, escapes=False)
        if real is None:  # it was closed when this process started
            self.failure, real = OSError("it is closed"), io.StringIO()
        self.real: TextIO = real
        with contextlib.suppress(AttributeError, ValueError):  # not every stream has an encoding
            real.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        self._try(lambda: self.real.write(visible(text) if self.escapes else text))
        return len(text)

    def flush(self) -> None:
        self._try(self.real.flush)
        if self.escapes:
            self.failure = self.failure or self.plain.failure

    def isatty(self) -> bool:
        """Return False for an escaping stream, so that libraries send no escape sequences."""
        return not self.escapes and self.real.isatty()

    def _try(self, act: Any) -> None:
        if self.failure is not None:
            return
        try:
            act()
        except (OSError, ValueError) as error:  # ValueError: a closed file
            self.failure = error
            with contextlib.suppress(OSError, ValueError):  # discard buffered output
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.real.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8, as Python stores it in a name
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
