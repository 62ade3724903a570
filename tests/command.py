"""The command line in this process: what it prints and its exit code, without the start of a Python."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator
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


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """The command line listens for interrupts and sets a variable for its children; the tests must
    not go on with either."""
    before = {
        sent: signal.getsignal(sent) for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    safe_path = os.environ.get("PYTHONSAFEPATH")
    try:
        yield
    finally:
        os.environ.pop("PYTHONSAFEPATH", None)
        if safe_path is not None:
            os.environ["PYTHONSAFEPATH"] = safe_path
        for sent, handler in before.items():
            signal.signal(sent, handler)


def run(*args: str | Path, cwd: Path | None = None) -> Done:
    """`save-deploy ARGS` in a folder. An exception that the command line does not catch is raised."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, _kept_signals():
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
