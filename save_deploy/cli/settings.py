"""save-deploy.toml in the current folder: options that are the same in every call.

    backend = "openvino"    # of every verb that has the option
    [export]
    res = 1024              # of one verb

Options on the line win. The folder may be a stranger's, so only options that choose among what is
there are read: none that trusts, forces, skips a check, names an output or reaches another machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from save_deploy.fields import Fields, near, read_toml

FILE = "save-deploy.toml"
SETTABLE = (
    "backend", "threads", "threshold", "color", "fps", "res", "preset", "data", "split", "clips",
    "sam", "vggish",
)  # fmt: skip


def default_map(command: Any, words: Sequence[str], verbs: Sequence[str]) -> dict[str, Any]:
    """Defaults of the command that the words name, as Click takes them, from the file of the current
    folder; what is taken is told on standard error. verbs: those a table may be of. Raises
    SaveDeployError for a file that is wrong."""
    if not Path(FILE).is_file():
        return {}
    path: list[str] = []
    leaf = command
    for word in words:
        inner = getattr(leaf, "commands", {}).get(word)
        if inner is None:
            break
        leaf, path = inner, [*path, word]
    if hasattr(leaf, "commands"):
        return {}
    settings = read_toml(Path(FILE), what="settings file")
    own = path[0] if path else str(command.name)
    given = _taken(settings, own, verbs)
    taken, told = dict[str, Any](), list[str]()
    for parameter in leaf.params:
        name = next((o[2:] for o in parameter.opts if o[2:] in given), None)
        on_line = any(word.partition("=")[0] in parameter.opts for word in words)
        if name is not None and not on_line:
            value = taken[str(parameter.name)] = _value(settings, name, given[name], parameter)
            told.append(f"{name} = {value}")
    if told:
        print(f"{FILE}: {', '.join(told)}", file=sys.stderr)
    for word in reversed(path):
        taken = {word: taken}
    return taken


def _taken(settings: Fields, own: str, known: Sequence[str]) -> dict[str, Any]:
    """Values by option: those of all verbs, then those of this one."""
    tables = {key: value for key, value in settings.values.items() if isinstance(value, dict)}
    if strange := sorted(tables.keys() - set(known)):
        raise settings.error(strange[0], got="a table", expected=near(strange[0], known))
    found = {key: value for key, value in settings.values.items() if key not in tables}
    for values in (found, *tables.values()):
        for key in values:
            if key not in SETTABLE:
                raise settings.error(
                    key, got="an option that no file sets", expected=near(key, SETTABLE)
                )
    return found | tables.get(own, {})


def _value(settings: Fields, name: str, value: Any, parameter: Any) -> Any:
    """As a word of the command line; of a repeatable option several."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(type(one) in (str, int, float) for one in values):
        raise settings.error(name, got=str(value), expected="a text or a number")
    if parameter.multiple:
        return [str(one) for one in values]
    if len(values) > 1:
        raise settings.error(name, got=str(value), expected="one value")
    return str(values[0])
