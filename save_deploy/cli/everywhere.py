"""What every command takes: -q, -v, --version, and --json with one meaning.

--json FILE writes a file; --json alone and `--json -` print it: standard output then holds nothing
else, and what a command says goes to standard error.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from save_deploy.machine import peak_memory_mib, versions

PANEL = "Every command"
STDOUT = "-"
JSON = "--json"
# verbs whose --json was a switch: a word after it is a file only where it ends so
_SWITCHES, _JSON_FILE = {"inspect", "compare"}, ".json"


Verb = Callable[..., None]
_current: Speech | None = None


def speech() -> Speech:
    """That of the run of the command line."""
    return _current or Speech()


class Speech:
    """How much a command says, and where. One per run of the command line."""

    def __init__(self) -> None:
        self.verbose = False
        self._streams = sys.stdout, sys.stderr
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._began = time.monotonic()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """While a command is parsed and runs. Then streams are as they were; JSON is printed."""
        global _current
        self._streams, _current = (sys.stdout, sys.stderr), self
        try:
            yield
        except BaseException as error:
            if self.verbose and isinstance(error, Exception):
                traceback.print_exception(error, file=self._streams[1])
            raise
        finally:
            sys.stdout, sys.stderr = self._streams
            if self.verbose:
                took, memory = time.monotonic() - self._began, peak_memory_mib()
                print(f"took {took:.1f} s, peak memory {memory:.0f} MiB", file=sys.stderr)
            if self._folder is not None:
                self._print_json(Path(self._folder.name))
                self._folder.cleanup()

    def watch_json(self, command: Any) -> None:
        """Give --json of a command, or of every one of a group, its meaning."""
        for inner in getattr(command, "commands", {}).values():
            self.watch_json(inner)
        for parameter in command.params:
            if JSON in parameter.opts:
                parameter.callback = self._json_place

    def be_quiet(self, given: bool) -> None:
        if given:
            sys.stdout, sys.stderr = io.StringIO(), io.StringIO()

    def be_verbose(self, given: bool) -> None:
        self.verbose = given
        if given:
            found = ", ".join(f"{name} {version}" for name, version in versions().items())
            print(found, file=sys.stderr)

    def _json_place(self, _context: Any, _parameter: Any, given: Any) -> Any:
        """`-` -> a file of ours, whose content is printed at the end."""
        if str(given) != STDOUT:
            return given
        sys.stdout = sys.stderr
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="save-deploy-")
        return Path(self._folder.name) / "out.json"

    def _print_json(self, folder: Path) -> None:
        for path in folder.glob("out.json"):
            with path.open() as file:
                shutil.copyfileobj(file, sys.stdout)


def with_common_options(verb: Verb, version: Callable[[bool], None]) -> Verb:
    """The verb with -q, -v and --version. version: called by --version."""
    flags = {
        "quiet": (("--quiet", "-q"), lambda on: speech().be_quiet(on), "Say nothing but errors."),
        "verbose": (
            ("--verbose", "-v"),
            lambda on: speech().be_verbose(on),
            "Say versions, time, memory, and where an error comes from.",
        ),
        "version": (("--version",), version, "Print versions of save-deploy and its backends."),
    }
    own = list(inspect.signature(verb, eval_str=True).parameters.values())
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, _flag(names, act, text)],
        )
        for name, (names, act, text) in flags.items()
    ]

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        verb(**{name: value for name, value in given.items() if name not in flags})

    made = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added]
    command.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in made}  # Typer reads both
    return command


def _flag(names: tuple[str, ...], act: Callable[[bool], None], text: str) -> Any:
    return typer.Option(
        *names, callback=act, is_eager=True, help=text, rich_help_panel=PANEL, show_default=False
    )


def with_json_place(words: Sequence[str], verb: str) -> list[str]:
    """The words of a command line, `--json` without a file as `--json=-`."""
    found: list[str] = []
    for word, after in zip(words, [*words, ""][1:], strict=True):
        file = bool(after) and (after == STDOUT or not after.startswith("-"))
        if verb in _SWITCHES:
            file = after == STDOUT or after.endswith(_JSON_FILE)
        found.append(f"{JSON}={STDOUT}" if word == JSON and not file else word)
    return found
