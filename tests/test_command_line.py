"""What the command line prints about itself."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
import typer

import save_deploy
from save_deploy import cli, progress


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
