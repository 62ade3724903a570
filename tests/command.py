"""The command line in this process: what it prints and its exit code, without the start of a Python."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import pytest

from save_deploy import cli


@dataclass(frozen=True)
class Done:
    """As subprocess.CompletedProcess has them."""

    returncode: int
    stdout: str
    stderr: str


def run(*args: str | Path, cwd: Path | None = None) -> Done:
    """`save-deploy ARGS` in a folder. An exception that the command line does not catch is raised."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["save-deploy", *map(str, args)])
        if cwd is not None:
            patch.chdir(cwd)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with pytest.raises(SystemExit) as ended:
                cli.main()
    code = ended.value.code
    return Done(
        code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue()
    )
