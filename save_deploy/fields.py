"""Typed reading of untrusted JSON, TOML and safetensors headers.

    fields = read_json(path, what="manifest", error=BundleError)
    res = fields.integer("res", low=1, high=4096)
    fields.done()                                # raises for keys that were not read

Every error names the file and the key, the value found, and the value expected. No memory is
allocated by an unchecked number, and no content is executed.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from save_deploy.errors import SaveDeployError

MAX_BYTES = 256 * 2**20  # far above the size of our own text files
MAX_DEPTH = 64  # of JSON, as kMaxJsonDepth in C++
_MISSING: Any = object()
_WORDS = {
    str: "a string", int: "an integer", float: "a number", bool: "a boolean", dict: "a table",
    list: "a list",
}  # fmt: skip
_SHOWN = 80  # characters of a value in an error
_FEW = 5  # words that an error lists in full


def read_json(
    path: Path, *, what: str, error: type[SaveDeployError] = SaveDeployError, hint: str = ""
) -> Fields:
    """Read the object in a JSON file.

    what: kind of file in errors: manifest, table, ...
    Raises `error` for a file that is missing, unreadable, not UTF-8, not JSON (NaN included), or
    larger than 256 MiB, for numbers that no float holds and what is nested deeper than MAX_DEPTH.
    """
    text = _read_text(path, what, error, hint)
    return parse_json(text, f"{what} {path}", error=error, hint=hint)


def parse_json(
    text: str | bytes,
    origin: str,
    *,
    error: type[SaveDeployError] = SaveDeployError,
    hint: str = "",
) -> Fields:
    """Parse the object in a JSON text. Errors start with `origin`."""
    try:
        values = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
        )
        _check_depth(values)
        if "\\u" in (text if isinstance(text, str) else text.decode()):
            json.dumps(values, ensure_ascii=False).encode()  # raises for a lone surrogate
    except (ValueError, RecursionError) as problem:
        got = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{origin} is not JSON", got=got, hint=hint) from None
    return Fields(values, origin, error=error, hint=hint)


def read_toml(
    path: Path, *, what: str, error: type[SaveDeployError] = SaveDeployError, hint: str = ""
) -> Fields:
    """Read the table in a TOML file. Raises `error` as read_json does."""
    text = _read_text(path, what, error, hint)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        got = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{what} {path} is not TOML", got=got, hint=hint) from None
    return Fields(values, f"{what} {path}", error=error, hint=hint)


def near(name: str, known: Iterable[str], n: int = 5) -> str:
    """Return up to n known names similar to `name`, or all of them when none is."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, n=n, cutoff=0.5) or known)


def check_word(
    what: str, word: str, known: Iterable[str], error: type[SaveDeployError] = SaveDeployError
) -> None:
    """Raise `error` for a word that is not among the known ones.

    It shows all of them when they are few, else those similar to the word.
    """
    known = list(known)
    if word not in known:
        expected = ", ".join(known) if len(known) <= _FEW else near(str(word), known)
        raise error(f"unknown {what}", got=str(word)[:_SHOWN], expected=expected)


class Fields:
    """One table of a file. Keys are read one by one; `done` raises for keys that were not read."""

    def __init__(
        self,
        values: object,
        origin: str,
        prefix: str = "",
        *,
        error: type[SaveDeployError] = SaveDeployError,
        hint: str = "",
    ) -> None:
        """Wrap a parsed object. Raises `error` when it is not a table.

        origin: the file, as in `recipe t1.toml`.
        prefix: position of the table in it, such as `train.`.
        """
        self.origin, self.prefix, self.error_type, self.hint = origin, prefix, error, hint
        if not isinstance(values, dict):
            where = f"{origin}: {prefix.rstrip('.')}" if prefix else origin
            raise error(where, got=shown(values), expected=_WORDS[dict], hint=hint)
        self.values: dict[str, Any] = values
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def error(self, key: str, *, got: str, expected: str) -> SaveDeployError:
        """Return the error for a value that the caller rejects."""
        where = f"{self.origin}: {_plain(f'{self.prefix}{key}')}".rstrip(".")
        return self.error_type(where, got=_plain(got), expected=expected, hint=self.hint)

    def take(self, key: str, kind: type, default: Any = _MISSING) -> Any:
        """Return the value of `key` with this type; an integer is a number, a boolean is not."""
        self._known.append(key)
        if key not in self.values:
            if default is _MISSING:
                raise self.error(key, got="nothing", expected=_WORDS[kind])
            return default
        value = self.values[key]
        if kind is float and type(value) is int and abs(value) < 2**1000:
            value = float(value)
        if type(value) is not kind or (type(value) is float and not math.isfinite(value)):
            raise self.error(key, got=shown(value), expected=_WORDS[kind])
        return value

    def string(self, key: str, choices: Iterable[str] = (), default: Any = _MISSING) -> str:
        value: str = self.take(key, str, default)
        self._choose(key, value, choices)
        return value

    def boolean(self, key: str, default: Any = _MISSING) -> bool:
        return bool(self.take(key, bool, default))

    def integer(
        self, key: str, default: Any = _MISSING, *, low: int = 0, high: int = 2**63 - 1
    ) -> int:
        value: int = self.take(key, int, default)
        if value is not default:
            self._range(key, value, low, high)
        return value

    def number(
        self, key: str, low: float = -math.inf, high: float = math.inf, *, default: Any = _MISSING
    ) -> float:
        value: float = self.take(key, float, default)
        if value is not default:
            self._range(key, value, low, high)
        return value

    def strings(self, key: str, choices: Iterable[str] = (), *, low: int = 0) -> tuple[str, ...]:
        """Read a list of at least `low` strings."""
        return self._list(key, "strings", lambda v: isinstance(v, str), choices, low)

    def integers(
        self, key: str, *, bottom: int = -(2**63), top: int = 2**63 - 1, low: int = 0
    ) -> tuple[int, ...]:
        """Read a list of at least `low` integers from bottom to top."""
        fits = lambda v: type(v) is int and bottom <= v <= top
        return self._list(key, f"integers from {bottom} to {top}", fits, (), low)

    def numbers(self, key: str, *, low: int = 0) -> tuple[float, ...]:
        """Read a list of at least `low` finite numbers."""
        fits = lambda v: type(v) in (int, float) and abs(v) < 2**1000 and math.isfinite(v)
        return tuple(map(float, self._list(key, "finite numbers", fits, (), low)))

    def table(self, key: str, default: Any = _MISSING) -> Fields:
        return self._sub(self.take(key, dict, default), key)

    def tables(self, key: str) -> list[Fields]:
        """Read a list of tables ([[key]] in TOML), [] when the key is missing."""
        values = self.take(key, list, [])
        return [self._sub(value, f"{key}[{i}]") for i, value in enumerate(values)]

    def each_table(self, key: str) -> Iterator[tuple[str, Fields]]:
        """Yield (name, table) of a table of tables with any names."""
        outer = self.table(key)
        for name, value in outer.values.items():
            yield name, outer._sub(value, name)

    def done(self, optional: Iterable[str] = ()) -> None:
        """Raise for a key that was not read. optional: further known keys."""
        known = dict.fromkeys((*self._known, *optional))
        for key in self.values:
            if key not in self._known:
                raise self.error_type(
                    f"{self.origin}: unknown key {self.prefix}{key}",
                    got=shown(self.values[key]),
                    expected=near(key, known),
                    hint=self.hint,
                )

    def _sub(self, values: object, key: str) -> Fields:
        return Fields(
            values, self.origin, f"{self.prefix}{key}.", error=self.error_type, hint=self.hint
        )

    def _list(
        self, key: str, words: str, fits: Callable[[Any], bool], choices: Iterable[str], low: int
    ) -> tuple[Any, ...]:
        values = self.take(key, list)
        if len(values) < low:
            raise self.error(key, got=shown(values), expected=f"at least {low} {words}")
        for i, value in enumerate(values):
            if not fits(value):
                raise self.error(f"{key}[{i}]", got=shown(value), expected=words)
            self._choose(f"{key}[{i}]", value, choices)
        return tuple(values)

    def _range(self, key: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            bound = f"{low:g} to {high:g}" if high < 2**62 else f"at least {low:g}"
            raise self.error(key, got=shown(value), expected=bound)

    def _choose(self, key: str, value: str, choices: Iterable[str]) -> None:
        choices = list(choices)
        if choices and value not in choices:
            raise self.error(key, got=shown(value), expected=near(value, choices))


def shown(value: object) -> str:
    """Return a value for an error message, short and on one line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _plain(text: str) -> str:
    """Shorten a text and escape its control characters."""
    cut = text if len(text) <= 4 * _SHOWN else text[: 4 * _SHOWN] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def _read_text(path: Path, what: str, error: type[SaveDeployError], hint: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise error(f"{what} {path} is too large", expected=f"at most {MAX_BYTES} bytes")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise error(f"no such {what}", got=str(path), hint=hint) from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"cannot read {what} {path}", got=str(problem), hint=hint) from None


def _check_depth(values: object) -> None:
    """Raises ValueError for lists and tables deeper than MAX_DEPTH."""
    level = [values]
    for _ in range(MAX_DEPTH + 2):  # the text itself is level 0
        inner = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))
        ]
        level = [value for group in inner for value in group]
        if not inner:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _bounded(text: str) -> int:
    _finite(text)  # what no float holds, C++ does not read
    return int(text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
