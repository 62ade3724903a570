"""Options and command line of save-compare, for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from save_deploy import cli
from save_deploy.runtime.comparison import (
    CompareOptions,
)


def options(bundles: tuple[Path, ...], **changes: Any) -> CompareOptions:
    """On one thread: cores may be busy, and threads that wait for each other are then very slow."""
    return CompareOptions(bundles, **{"threads": 1, "rounds": 3, "clips": 1, **changes})


def run_cli(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["save-compare", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.compare_main()
    return int(caught.value.code or 0)
