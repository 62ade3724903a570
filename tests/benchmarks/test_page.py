"""The side-by-side table of docs/benchmarks.md is made from the pages of docs/benchmarks."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import page

TITLE = page.CASES["vit_b_256"].title
AVX2 = f"""# Benchmarks: AVX2

Words by hand.

## {TITLE}

| entry | backend | p50 ms | x eager |
|---|---|---:|---:|
| eager | torch | 100.4 | 1.00 |
| int8 | onnxruntime | 20.0 | 5.02 |

Older:

| entry | backend | p50 ms | p90 | x eager |
|---|---|---:|---:|---:|
| int8 | onnxruntime | 30.0 | 31 | 3.30 |
| naive-int8 | openvino | failed |  |  |

## Of another command

| x | y |
|---|---|
| 1 | 2 |
"""


def test_cells_are_those_of_the_first_table_that_has_the_entry() -> None:
    other = AVX2.replace("5.02", "8.50").replace("20.0", "11.8")
    assert page.side_by_side({"avx512_amx": other, "avx2": AVX2}) == [
        "| model | entry | backend | AVX2 | AVX512, VNNI, AMX |",
        "|---|---|---|---:|---:|",
        f"| {TITLE} | eager | torch | 1.00 (100 ms) | 1.00 (100 ms) |",
        "|  | naive-int8 | openvino | failed | failed |",
        "|  | int8 | onnxruntime | 5.02 (20 ms) | 8.50 (12 ms) |",
    ]


def test_page_shows_the_committed_measurements() -> None:
    """A page measured anew without its table in docs/benchmarks.md fails here."""
    text = (page.DOCS / "benchmarks.md").read_text(encoding="utf-8")
    shown = page.side_by_side(page.read_pages(page.DOCS))
    assert page.with_table(text, shown) == text
    changed = page.with_table(text, [*shown, "| one row more |"])
    assert changed != text  # the comparison can fail


def test_new_section_replaces_that_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bench(command: list[str], **_: Any) -> None:
        out = Path(command[-1])
        table = ["| entry | backend | p50 ms | x eager |", "| --- | --- | ---: | ---: |"]
        text = "\n".join(
            ["`the command`", "", *table, "| eager | torch | 7.0 | 1.00 |", "", "notes"]
        )
        (out / "bench.md").write_text(text)
        (out / "bench.png").write_bytes(b"picture")
        assert "--preset" in command and "vit_b" in command

    monkeypatch.setattr(subprocess, "run", bench)
    (tmp_path / "avx2.md").write_text(AVX2)
    page.add_section(tmp_path, "avx2", "vit_b_256")
    text = (tmp_path / "avx2.md").read_text()
    assert text.startswith("# Benchmarks: AVX2\n\nWords by hand.\n\n## ")
    found = page.sections(text)
    assert list(found) == [TITLE, "Of another command"]
    assert [row["p50 ms"] for row in page.rows(found[TITLE])] == ["7.0"]
    assert "avx2_vit_b_256.png" in found[TITLE] and "--rounds 15" in found[TITLE]
    assert (tmp_path / "avx2_vit_b_256.png").read_bytes() == b"picture"
    page.add_section(tmp_path, "avx512", "vit_b_256")
    assert (tmp_path / "avx512.md").read_text().startswith("# Benchmarks: AVX512\n")
