"""Commands made from options dataclasses: values, groups, and options without effect."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from save_deploy import cli
from save_deploy.cli.everywhere import PANEL
from save_deploy.cli.takes import takes
from save_deploy.errors import SaveDeployError
from save_deploy.options import KEY, option
from save_deploy.runtime.bulk.options import BulkOptions
from tests.command import run as command_line


@dataclass(frozen=True, kw_only=True)
class Inner:
    clips: int = option("--clips", panel="Search", needs=("--budget",), default=4, low=2, help=".")
    budget: float | None = option(
        "--budget", panel="Search", needs=("--fast",), default=None, help="."
    )
    table: Path | None = option("--table", default=None, help=".")


@dataclass(frozen=True, kw_only=True)
class Outer:
    source: Path = option(help="What is read.")
    names: tuple[str, ...] = option("--name", default=("a",), help=".")
    check: bool = option(" /--no-check", default=True, help=".")
    pair: tuple[int, int] = option(
        "--pair", default=(1, 2), text="1-2", help=".",
        parse=lambda text: tuple(int(part) for part in text.split("-")),
    )  # fmt: skip
    smooth: bool = option("--smooth/--rough", default=True, excludes=("--table",), help=".")
    hidden: str = "kept"
    inner: Inner = field(default_factory=Inner)


def run(*arguments: str, leave_out: tuple[str, ...] = ()) -> Any:
    """The dataclass and the verb's own option that a command line gives."""
    seen: list[Any] = []

    @takes(Outer, leave_out=leave_out)
    def verb(outer: Outer, fast: Annotated[bool, typer.Option("--fast")] = False) -> None:
        seen.append((outer, fast))

    app = typer.Typer(add_completion=False)
    app.command()(verb)
    typer.main.get_command(app).main(list(arguments), standalone_mode=False)
    return seen[0]


def test_defaults_are_those_of_the_dataclass() -> None:
    assert run("film") == (Outer(source=Path("film")), False)


def test_every_kind_of_field() -> None:
    outer, fast = run(
        "film", "--fast", "--name", "x", "--name", "y", "--no-check", "--pair", "3-4", "--rough",
        "--budget", "0.5", "--clips", "7",
    )  # fmt: skip
    assert fast and outer == Outer(
        source=Path("film"), names=("x", "y"), check=False, pair=(3, 4), smooth=False,
        inner=Inner(clips=7, budget=0.5),
    )  # fmt: skip
    assert isinstance(outer.names, tuple) and outer.hidden == "kept"


def test_a_number_below_the_range() -> None:
    assert run("film", "--fast", "--budget", "0.5", "--clips", "2")[0].inner.clips == 2
    with pytest.raises(Exception, match=r"equal to 2|x>=2"):
        run("film", "--fast", "--budget", "0.5", "--clips", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "7"], "--clips\n  expected: --budget as well"),
        (["--budget", "1"], "--budget\n  expected: --fast as well"),
        (["--rough", "--table", "t"], "exclude each other"),
        (["--smooth", "--table", "t"], "exclude each other"),  # its default, but said
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SaveDeployError, match=message):
        run("film", *arguments)


def test_a_command_without_the_needed_option_does_not_ask_for_it() -> None:
    outer, _ = run("film", "--clips", "7", leave_out=("inner.budget",))
    assert outer.inner.clips == 7
    with pytest.raises(Exception, match="No such option"):
        run("film", "--budget", "1", leave_out=("inner.budget",))


@pytest.mark.parametrize(
    ("verb", "arguments", "first", "panels"),
    [
        (
            "export", ["checkpoint"],
            ["--res", "--data", "--out", "--force", "--fp16", "--int8", "--engine", "--dry-run"],
            {"Graph", "Comparison with eager", "Quantization", "Precision search"},
        ),
        (
            "eval", ["checkpoint"], ["--data", "--split", "--clips", "--metrics", "--json"],
            {"Model", "Data", "A row of the paper"},
        ),
        (
            "run", ["bundle", "sources"],
            [
                "--out", "--masks", "--matte", "--json", "--json-masks", "--show", "--force", "--color",
                "--silent", "--threshold",
            ],
            {"Section", "Backend", "Many videos", "Live"},
        ),
    ],
)  # fmt: skip
def test_help_shows_few_options_first(
    verb: str, arguments: list[str], first: list[str], panels: set[str]
) -> None:
    """The others stand in named groups."""
    parameters = typer.main.get_command(cli._single(verb)).params
    options = [p for p in parameters if p.param_type_name == "option"]
    assert [p.name for p in parameters if p.param_type_name == "argument"] == arguments
    assert [p.opts[0] for p in options if getattr(p, "rich_help_panel", None) is None] == first
    assert {str(getattr(p, "rich_help_panel", None)) for p in options} - {"None", PANEL} == panels


@pytest.mark.parametrize("verb", ["eval", "train"])
@pytest.mark.parametrize("option", ["--test", "--root"])
def test_options_of_a_recipe_need_one(verb: str, option: str) -> None:
    done = command_line(verb, option, "s4")
    assert done.returncode == 1 and f"{option}\n  expected: --recipe as well" in done.stderr


@pytest.mark.parametrize("flag", [f.metadata[KEY].names[0] for f in fields(BulkOptions)])
def test_options_of_many_videos_exclude_live(flag: str) -> None:
    """Also with their defaults: what a live source does not do is not passed over in silence."""
    value = {"--retries": "3", "--format": "rle", "--engine": "local", "--shard": "0/1"}.get(
        flag, "1"
    )
    more = ("--engine", "local") if flag == "--address" else ()
    for place in ((flag, value, "--live"), ("--live", flag, value)):
        done = command_line("run", "bundle", "camera", *more, *place)
        assert done.returncode == 1 and "options that exclude each other" in done.stderr, (
            done.stderr
        )
        (got,) = (line for line in done.stderr.splitlines() if "  got:" in line)
        assert "--live and " in got and flag in got
    assert "exclude" not in command_line("run", "none", "none.mp4", flag, value, *more).stderr
