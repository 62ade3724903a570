"""What the command line prints about itself."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer

import save_deploy
from save_deploy import cli, progress
from save_deploy.data.write import write_avsbench
from save_deploy.terminal import visible
from tests.command import run


def version_of(blocked: str = "") -> list[str]:
    """Lines of `save-deploy --version` in a process that cannot import `blocked`."""
    code = (
        "import sys\n"
        f"for name in {blocked!r}.split(): sys.modules[name] = None\n"
        "sys.argv[1:] = ['--version']\n"
        "from save_deploy.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_version_imports_no_backend() -> None:
    lines = version_of(blocked="torch onnxruntime openvino tensorrt tensorrt_rtx")
    assert lines[0] == f"save-deploy {save_deploy.__version__}"
    assert f"openvino {metadata.version('openvino')}" in lines
    assert len(lines) == len(set(lines))
    assert not any(line.startswith("tensorrt ") for line in lines)  # twin: it is not installed


def test_an_interrupt_that_became_another_error_is_still_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """C code may answer a KeyboardInterrupt with an error of its own; without one, it is our bug."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def verb() -> None:
        raise ValueError("could not determine the shape")

    monkeypatch.setattr(cli, "listen_for_interrupts", lambda: None)
    monkeypatch.setattr("sys.argv", ["verb"])
    monkeypatch.setattr(progress, "_interrupted", True)
    with pytest.raises(SystemExit) as ended:
        cli._run(app)
    assert ended.value.code == 130 and "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(progress, "_interrupted", False)
    with pytest.raises(ValueError, match="shape"):
        cli._run(app)


ESCAPES = "\x1b]0;title\x07\x1b[31mred[bold]\u202e"
SHOWN = r"\x1b]0;title\x07\x1b[31mred[bold]\u202e"


def test_control_characters_are_shown_and_not_sent() -> None:
    assert visible(ESCAPES) == SHOWN
    assert visible("a\tb\r\nc\nd\re\x9b") == "a\tb\r\nc\nd\\x0de\\x9b"
    assert visible("Zo\u00eb \u65e5\u672c [red]") == "Zo\u00eb \u65e5\u672c [red]"
    assert visible(os.fsdecode(b"\xff.png")) == r"\xff.png"


@pytest.mark.slow
def test_names_reach_the_terminal_as_text(tmp_path: Path) -> None:
    """In errors, in tables of Rich, whose markup they may be, and on both streams."""
    done = run("inspect", tmp_path / ESCAPES)
    assert done.returncode == 1 and SHOWN in done.stderr and "\x1b" not in done.stderr
    folder = tmp_path / ESCAPES
    write_avsbench(folder, name="scenes", subset="s4", counts={"train": 1}, size_px=32)
    (folder / "Single-source" / "s4_data" / "audio_wav" / "train").rename(folder / "elsewhere")
    done = run("data", "check", folder)
    shown = "".join(done.stdout.split())  # the table's title is on several lines
    assert done.returncode == 1 and shown.count(SHOWN) >= 1 and SHOWN in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("where", ["> /dev/full", ">&-", "| true"])
def test_standard_output_that_cannot_be_written(where: str) -> None:
    command = f"'{sys.executable}' -P -m save_deploy recipes {where}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and lines[0] == "error: standard output cannot be written"
    assert len(lines) == 4


@pytest.mark.slow
def test_an_encoding_without_our_characters() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "save_deploy", "inspect", "Zo\u00eb"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1 and rb"got:      Zo\xeb without manifest.json" in done.stderr


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL ends the process there, with an exit code of its own."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    done = run("systems")
    assert done.returncode == 1 and "the current folder no longer exists" in done.stderr
