"""The table of docs/scale.md is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.bulk_speed import main


@pytest.mark.thorough
def test_table(bundle_fp32: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(bundle_fp32, rounds=1, seconds=1, films=1, height=72)
    said = capsys.readouterr().out
    assert "| model alone |" in said and "| rle, both, 1 actor |" in said and "resize" in said
