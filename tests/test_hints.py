"""What documents and messages tell a user to type exists: verbs, and the options named beside them."""

from __future__ import annotations

import ast
import difflib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from save_deploy.cli import GROUPS, VERBS, _group

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [
    path
    for folder in ("save_deploy", "export", "runtime", "calibration")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# `save-export ...`, `save-deploy checkpoint convert ...`, up to the end of the line or of the code
_COMMAND = re.compile(
    r"save-(deploy (?P<words>[a-z]+(?: [a-z]+)?)|(?P<verb>[a-z]+))(?P<rest>[^`\n|;]*)"
)
_END = re.compile(r"   \(|\)\.|,? or |\bsave-[a-z]")  # of what belongs to a command
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*)")
# words that begin like a command and are none
NOT_COMMANDS = {"infer", "deploy", "runtime"}


@cache
def options_of() -> dict[str, set[str]]:
    """`export`, `data check` -> what stands before values there."""
    root = typer.main.get_command(_group())
    found: dict[str, set[str]] = {}

    def walk(command: object, words: tuple[str, ...]) -> None:
        names = {n for p in command.params for n in (*p.opts, *p.secondary_opts)}  # type: ignore[attr-defined]
        found[" ".join(words)] = names | {"--help", "--version"}
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*words, name))

    walk(root, ())
    return found


@cache
def programs() -> set[str]:
    """Verbs that have a program of their own, `export` for save-export."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return {name.removeprefix("save-") for name in scripts} - {"deploy"}


def misspelled_in(text: str) -> list[str]:
    """Commands by the longer of two names, or by a program that does not exist."""
    found = []
    for match in _COMMAND.finditer(text):
        words, verb = match["words"], match["verb"]
        if (words and words in programs()) or (verb in VERBS and verb not in programs()):
            found.append(match[0].strip())
    return found


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """(verb, options named beside it)."""
    for match in _COMMAND.finditer(text):
        words = match["words"] or match["verb"]
        first, _, second = words.partition(" ")
        name = f"{first} {second}" if first in GROUPS else first
        yield name, _OPTION.findall(_END.split(match["rest"])[0])


def wrong_in(text: str, *, where: str) -> list[str]:
    known, found = options_of(), []
    for name, options in commands_in(text):
        verb = name.strip()
        if verb in NOT_COMMANDS or (verb.partition(" ")[0] in GROUPS and verb not in known):
            continue
        if verb not in known:  # a word of a sentence, unless it resembles a verb or has options
            if options or difflib.get_close_matches(verb, known, cutoff=0.75):
                found.append(f"{where}: no verb {verb}")
            continue
        found += [f"{where}: {verb} has no {o}" for o in options if o not in known[verb]]
    return found


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_documents_name_what_exists(path: Path) -> None:
    """In code only: prose may name an option and, further on, a verb."""
    text = path.read_text()
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL) + re.findall(r"(?m)^ {4}\S.*$", text)
    joined = [re.sub(r"\\\n\s*", " ", part) for part in code]
    assert not [w for part in joined for w in wrong_in(part, where=path.name)]


def strings_of(path: Path) -> Iterator[str]:
    """Texts of a source file, values in f-strings as X; docstrings, too."""
    inside = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in node.values}
            parts = [v.value if isinstance(v, ast.Constant) else "X" for v in node.values]
            yield "".join(map(str, parts))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.value


@pytest.mark.slow
def test_messages_name_what_exists() -> None:
    texts = [(path, text) for path in SOURCES for text in strings_of(path)]
    assert sum(bool(_COMMAND.search(text)) for _, text in texts) > 50
    wrong = [w for path, text in texts for w in wrong_in(text, where=str(path.relative_to(ROOT)))]
    assert not wrong


@pytest.mark.slow
def test_commands_have_one_name() -> None:
    """save-export where there is a program of that name, `save-deploy verify` for other verbs."""
    texts = [(path, text) for path in SOURCES for text in strings_of(path)]
    texts += [(path, path.read_text()) for path in DOCS]
    found = [f"{path.name}: {name}" for path, text in texts for name in misspelled_in(text)]
    assert not found
    assert misspelled_in("run save-deploy export X, or save-verify X") == [
        "save-deploy export X, or save-verify X"
    ]
    assert misspelled_in("save-verify X") and not misspelled_in("save-deploy verify X")


def test_twins() -> None:
    """A verb and an option that do not exist are found."""
    assert wrong_in("`save-exprt --res 256`", where="t") == ["t: no verb exprt"]
    assert wrong_in("save-export --ress 256 --res 1", where="t") == ["t: export has no --ress"]
    assert wrong_in("save-deploy checkpoint convert X --map a --mip b", where="t") == [
        "t: checkpoint convert has no --mip"
    ]
    assert not wrong_in("save-export CHECKPOINT --int8; --nonsense is of another", where="t")
    assert set(VERBS) <= set(options_of())
