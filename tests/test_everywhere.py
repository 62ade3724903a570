"""What every command has: help on one screen, -q, -v, -h, --version, --json, settings, near names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import save_deploy
from save_deploy import cli
from save_deploy.cli import GROUPS, VERBS
from save_deploy.cli.everywhere import with_json_place
from save_deploy.cli.settings import SETTABLE, default_map
from save_deploy.cli.takes import takes
from save_deploy.runtime.compare.options import CompareOptions
from tests.command import run

COMMANDS = [(v,) for v in VERBS] + [(g, v) for g, (_, verbs) in GROUPS.items() for v in verbs]
NAMES = [" ".join(words) for words in COMMANDS]
LINES, COLUMNS = 40, 80


def help_of(*words: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(COLUMNS))
        patch.setenv("TERMINAL_WIDTH", str(COLUMNS))
        done = run(*words, "-h")
    assert done.returncode == 0
    return done.stdout.splitlines()


def end_of_basic(lines: list[str]) -> int:
    """The line on which the first panel of options or commands ends."""
    names = ("Options", "Commands")
    begin = next(i for i, line in enumerate(lines) if re.match(rf"╭─ ({'|'.join(names)}) ", line))
    return next(i for i, line in enumerate(lines) if i > begin and line.startswith("╰")) + 1


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), *COMMANDS], ids=["", *NAMES])
def test_help_on_one_screen(words: tuple[str, ...]) -> None:
    lines = help_of(*words)
    assert max(map(len, lines)) <= COLUMNS
    if words:
        assert end_of_basic(lines) <= LINES
        text = "\n".join(lines)
        assert "Every command" in text and "--quiet" in text and "--version" in text
    else:
        first = next(i for i, line in enumerate(lines) if "─ Commands" in line)
        assert next(i for i, line in enumerate(lines) if i > first and line[0] == "╰") < LINES
    at = next(i for i, line in enumerate(lines) if line.startswith("╭─ Options")) + 1
    longer = [*lines[:at], *lines[at : at + 1] * LINES, *lines[at:]]  # twin: an option of 40 lines
    assert end_of_basic(longer) > LINES


def test_a_command_alone_shows_its_help() -> None:
    """And no empty error after it; the twin: a wrong word is an error."""
    for words in ((), *((group,) for group in GROUPS)):
        done = run(*words)
        assert (done.returncode, done.stderr) == (1, "") and "─ Commands" in done.stdout
    assert run("data", "scnes").stderr.startswith("error: No such command 'scnes'")


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=NAMES)
def test_version_of_every_command(words: tuple[str, ...]) -> None:
    done = run(*words, "--version")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"save-deploy {save_deploy.__version__}"


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("exprt",), "'export'"),
        (("cache", "lss"), "'ls'"),
        (("run", "--treshold", "1"), "--threshold"),
        (("train", "--preset", "vit_bb"), "vit_b"),
        (("eval", "--recipe", "t1_ap_sma"), "t1_ap_sam"),
        (("verify", "BUNDLE", "--backend", "openvin"), "--backend openvino"),
        (("bench", "--backends", "onnxruntim"), "onnxruntime"),
    ],
)
def test_near_names(words: tuple[str, ...], near: str, bundle_fp32: Path) -> None:
    done = run(*(str(bundle_fp32) if word == "BUNDLE" else word for word in words))
    assert done.returncode == 1 and near in done.stderr, done.stderr


def test_quiet_and_verbose(bundle_fp32: Path) -> None:
    usual, quiet = run("inspect", bundle_fp32), run("inspect", bundle_fp32, "-q")
    assert usual.returncode == quiet.returncode == 0
    assert "system" in usual.stdout and quiet.stdout + quiet.stderr == ""
    wrong = run("inspect", bundle_fp32 / "none", "--quiet")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ")
    more = run("inspect", bundle_fp32, "-v")
    assert more.stdout == usual.stdout
    assert f"save-deploy {save_deploy.__version__}" in more.stderr and "peak memory" in more.stderr
    assert "Traceback" in run("inspect", bundle_fp32 / "none", "-v").stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("line", "verb", "expected"),
    [
        ("BUNDLE --json", "inspect", "BUNDLE --json=-"),
        ("--json BUNDLE", "inspect", "--json=- BUNDLE"),  # as it was when it was a switch
        ("--json a.json BUNDLE", "inspect", "--json a.json BUNDLE"),
        ("--json - BUNDLE", "compare", "--json - BUNDLE"),
        ("--json a BUNDLE", "run", "--json a BUNDLE"),
        ("FILM --json --force", "run", "FILM --json=- --force"),
        ("FILM --json=a", "run", "FILM --json=a"),
    ],
)
def test_json_without_a_file(line: str, verb: str, expected: str) -> None:
    assert with_json_place(line.split(), verb) == expected.split()


def test_json_is_one_thing(bundle_fp32: Path, tmp_path: Path) -> None:
    """Alone and as - it is all that standard output holds; else the file holds the same."""
    for words in (("inspect", bundle_fp32), ("systems",)):
        place = tmp_path / f"{words[0]}.json"
        assert run(*words, "--json", place).returncode == 0
        told = json.loads(place.read_text())
        for form in (("--json",), ("--json", "-"), ("--json=-", "-q")):
            done = run(*words, *form)
            assert done.returncode == 0 and json.loads(done.stdout) == told, (words, form)
    assert json.loads(run("inspect", "--json", bundle_fp32).stdout)["precision"] == "fp32"
    failed = run("inspect", tmp_path, "--json")
    assert failed.returncode == 1 and failed.stdout == ""


@pytest.mark.slow
def test_every_json_is_a_file_or_standard_output() -> None:
    for words in COMMANDS:
        text = " ".join(" ".join(help_of(*words)).replace("│", " ").split())
        if "--json " in text:
            assert re.search(r"--json +<path>", text), words


def test_settings(bundle_fp32: Path, tmp_path: Path) -> None:
    """Of the current folder; those of a verb before those of all; the line before both."""
    (tmp_path / "save-deploy.toml").write_text(
        'backend = "none"\nclips = 3\n[verify]\nbackend = "onnxruntime"\n'
    )
    done = run("verify", bundle_fp32, cwd=tmp_path)
    assert done.returncode == 0 and "onnxruntime" in done.stdout, done.stderr
    assert "save-deploy.toml: backend = onnxruntime\n" in done.stderr
    done = run("verify", bundle_fp32, "--backend", "nothing", cwd=tmp_path)
    assert "nothing" in done.stderr and "save-deploy.toml" not in done.stderr
    done = run("doctor", bundle_fp32, cwd=tmp_path)
    assert done.returncode == 1 and "none" in done.stderr
    assert run("run", "-h", cwd=tmp_path).returncode == 0
    done = run("run", bundle_fp32, "none.mp4", cwd=tmp_path)  # whose options are nested inside
    assert "save-deploy.toml: backend = none\n" in done.stderr


def test_settings_of_repeatable_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("save-deploy.toml").write_text('data = ["scenes:ms3", "x"]\nthreads = 2')
    command = typer.main.get_command(cli._group())
    found = default_map(command, ["compare", "bundle", "--threads=3"], ["compare"])
    assert found == {"compare": {"data": ["scenes:ms3", "x"]}}
    seen: list[tuple[str, ...]] = []

    @takes(CompareOptions)
    def verb(options: CompareOptions) -> None:
        seen.append(options.data)

    app = typer.Typer(add_completion=False)
    app.command()(verb)
    typer.main.get_command(app).main(["b"], standalone_mode=False, default_map=found["compare"])
    assert seen == [("scenes:ms3", "x")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('backnd = "x"', "backend"),
        ("trust-engine = true", "an option that no file sets"),
        ("[run]\nforce = true", "an option that no file sets"),
        ("[rum]\nthreads = 1", "run"),
        ("threads = 0", "threads"),
        ("threads = true", "a text or a number"),
        ("threads = [1, 2]", "one value"),
        ("threads = ", "not TOML"),
        ('threads = "\\u001b[31m"', "threads"),
    ],
)
def test_settings_that_are_wrong(text: str, said: str, bundle_fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "save-deploy.toml").write_text(text)
    done = run("mask", bundle_fp32, "a.png", "a.wav", "-o", "m.png", cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr and "\x1b" not in done.stderr
    assert "save-deploy.toml" in done.stderr and run("--version", cwd=tmp_path).returncode == 0


def test_what_no_file_may_set() -> None:
    """Names of outputs, of other machines, and what accepts what is refused otherwise."""
    from tests.test_hints import options_of

    known = {name for names in options_of().values() for name in names}
    assert {f"--{name}" for name in SETTABLE} <= known
    loose = (
        r"trust|force|skip|allow|silent|no-|any|manifest|address|out|json|report|shard|checkpoint"
    )
    assert not [name for name in SETTABLE if re.search(loose, name)]


@pytest.mark.slow
def test_completion() -> None:
    code = "import sys; sys.argv[0] = 'save-deploy'; from save_deploy.cli import main; main()"
    for line, found in (("save-deploy ex", "export"), ("save-deploy run --thresh", "--threshold")):
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, **asked, "_SAVE_DEPLOY_COMPLETE": "complete_bash"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.split() == [found], done.stderr


ROOT = Path(__file__).parents[1]
_READ = re.compile(
    r"""(?:environ\.get\(|environ\.setdefault\(|environ\[|getenv\(|variable\()["']([A-Za-z_]+)["']"""
    r"""|^(?:ENV)?_[A-Z]* ?= ["']([A-Za-z_]+)["']""", re.M,
)  # fmt: skip
_OURS = ("save_deploy", "export", "calibration", "runtime")
NOT_OURS = {"PYTHONPATH"}  # in the text of a program that is written for Triton


def variables() -> set[str]:
    found: set[str] = set()
    for folder in _OURS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".hpp", ".h") and "tests" not in path.parts:
                text = path.read_text()
                if "environ" in text or "getenv" in text:
                    found |= {name for pair in _READ.findall(text) for name in pair if name}
    return found - NOT_OURS


def test_the_page_of_environment_variables() -> None:
    """docs/environment.md and the code name the same ones."""
    page = (ROOT / "docs" / "environment.md").read_text()
    named = set(re.findall(r"^\| `(\w+)`", page, re.M))
    assert {"SAVE_DEPLOY_CACHE", "XDG_CACHE_HOME", "SAVE_TUXPAINT_DIR", "HOME"} <= named
    assert variables() | {"DISPLAY", "NO_COLOR"} == named
