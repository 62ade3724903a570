"""Typed reading of a TOML table: every error names the file and the key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from save_deploy.errors import SaveDeployError

_MISSING: Any = object()
_WORDS = {str: "a text", int: "a whole number", float: "a number", dict: "a table", list: "a list"}


def read_toml(path: Path) -> dict[str, Any]:
    """Raises SaveDeployError for a file that is missing, unreadable or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaveDeployError(
            "no such recipe file", got=str(path), hint="recipe names have no .toml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SaveDeployError(f"cannot read recipe {path}", got=str(error)) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SaveDeployError(
            f"recipe {path} is not TOML", got=str(error) or "nested too deeply"
        ) from None


def near(name: str, known: Iterable[str], n: int = 5) -> str:
    """Up to n known names that look like this one, or all of them when none does."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, n=n, cutoff=0.5) or known)


class Fields:
    """One table of a file. Keys are taken one by one; `done` refuses what nobody asked for."""

    def __init__(self, values: dict[str, Any], path: Path, prefix: str = "") -> None:
        self.values, self.path, self.prefix = values, path, prefix
        self._known: list[str] = []

    def error(self, key: str, *, got: str, expected: str) -> SaveDeployError:
        return SaveDeployError(
            f"recipe {self.path}: {self.prefix}{key}", got=got, expected=expected
        )

    def take(self, key: str, kind: type, default: Any = _MISSING) -> Any:
        """The value of `key`, checked; a whole number is a number, a boolean is not."""
        self._known.append(key)
        if key not in self.values:
            if default is _MISSING:
                raise self.error(key, got="nothing", expected=_WORDS[kind])
            return default
        value = self.values[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(key, got=repr(value), expected=_WORDS[kind])
        return value

    def text(self, key: str, choices: Iterable[str] = (), default: Any = _MISSING) -> str:
        value: str = self.take(key, str, default)
        self._choose(key, value, choices)
        return value

    def whole(self, key: str, default: Any = _MISSING, *, low: int = 1) -> int:
        value: int = self.take(key, int, default)
        if value < low:
            raise self.error(key, got=str(value), expected=f"at least {low}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value: float = self.take(key, float)
        if not low <= value <= high:  # also refuses nan
            raise self.error(key, got=str(value), expected=f"{low:g} to {high:g}")
        return value

    def texts(self, key: str, choices: Iterable[str]) -> tuple[str, ...]:
        """A list of at least one text."""
        values = self.take(key, list)
        if not values or not all(isinstance(v, str) for v in values):
            raise self.error(key, got=repr(values), expected="a list of texts")
        for value in values:
            self._choose(key, value, choices)
        return tuple(values)

    def table(self, key: str, default: Any = _MISSING) -> Fields:
        return Fields(self.take(key, dict, default), self.path, f"{self.prefix}{key}.")

    def tables(self, key: str) -> list[Fields]:
        """[[key]] in order; none is an empty list."""
        values = self.take(key, list, [])
        if not all(isinstance(v, dict) for v in values):
            raise self.error(key, got=repr(values), expected=f"[[{key}]] tables")
        return [Fields(v, self.path, f"{self.prefix}{key}[{i}].") for i, v in enumerate(values)]

    def done(self, optional: Iterable[str] = ()) -> None:
        """Raise for a key that was never taken. optional: what could have been there as well."""
        known = dict.fromkeys((*self._known, *optional))
        for key in self.values:
            if key not in self._known:
                raise SaveDeployError(
                    f"recipe {self.path}: unknown key {self.prefix}{key}",
                    got=repr(self.values[key])[:80],
                    expected=near(key, known),
                )

    def _choose(self, key: str, value: str, choices: Iterable[str]) -> None:
        choices = list(choices)
        if choices and value not in choices:
            raise self.error(key, got=repr(value), expected=", ".join(choices))
