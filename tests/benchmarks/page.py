"""The pages of docs/benchmarks: one command for each kind of machine.

    python -m tests.benchmarks.page avx512_amx [--only vit_t_256,vit_b_256]

Run from the repository root. Each case is a `save-deploy bench`; its table, notes and picture become a
section of docs/benchmarks/KIND.md, where they replace those of an earlier run. Then the table of
docs/benchmarks.md that has all kinds side by side is written from these pages.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- side by side: begin -->", "<!-- side by side: end -->"
KINDS = {"avx2": "AVX2", "avx512": "AVX512", "avx512_amx": "AVX512, VNNI, AMX"}


@dataclass(frozen=True)
class Case:
    """One benchmark. title: heading of its section. options: of `save-deploy bench`."""

    title: str
    options: str


CASES = {
    "vit_t_256": Case(
        "vit_t at 256 px (the built-in checkpoint)", "--what eager,compile,naive,merged,int8"
    ),
    "vit_b_256": Case(
        "vit_b at 256 px",
        "--preset vit_b --what eager,compile,naive,naive-int8,merged,int8 --rounds 15",
    ),
    "vit_b_256_x5": Case(
        "vit_b at 256 px, a clip of five frames a call",
        "--preset vit_b --batch 5 --what eager,naive,merged,int8 --rounds 8",
    ),
    "vit_b_1024": Case(
        "vit_b at 1024 px", "--preset vit_b --res 1024 --what eager,naive,merged,int8 --rounds 3"
    ),
    "vit_h_256": Case(
        "vit_h at 256 px", "--preset vit_h --what eager,naive,merged --rounds 3 --budget 600"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--only", default=",".join(CASES))
    given = parser.parse_args()
    for name in given.only.split(","):
        add_section(DOCS / "benchmarks", given.kind, name)
        write_side_by_side(DOCS)


def add_section(folder: Path, kind: str, name: str) -> None:
    """Run a case and write its section into the page of a kind of machine."""
    case = CASES[name]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-P", "-m", "save_deploy", "bench", *shlex.split(case.options)]
        subprocess.run([*command, "-o", work], check=True)
        table = (Path(work) / "bench.md").read_text(encoding="utf-8").split("\n", 1)[1].strip()
        picture = f"{kind}_{name}.png"
        shutil.copyfile(Path(work) / "bench.png", folder / picture)
    minutes = (time.monotonic() - began) / 60
    text = (
        f"`save-deploy bench {case.options}` ({minutes:.0f} minutes)\n\n{table}\n\n"
        f"![{case.title}]({picture})"
    )
    page = folder / f"{kind}.md"
    before = page.read_text(encoding="utf-8") if page.exists() else _intro(kind)
    found = sections(before) | {case.title: text}
    known = [c.title for c in CASES.values()]
    ordered = sorted(found, key=lambda title: known.index(title) if title in known else len(known))
    parts = [before.split("\n## ")[0].strip()]  # what was written by hand stays
    parts += [f"## {title}\n\n{found[title]}" for title in ordered]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _intro(kind: str) -> str:
    return f"# Benchmarks: {KINDS[kind]}\n\nWhat the columns mean: [benchmarks](../benchmarks.md)."


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading of the second level of a Markdown page."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return {title: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}


def rows(section: str) -> list[dict[str, str]]:
    """Return the rows of all tables of a section, by column."""
    found: list[dict[str, str]] = []
    heads: list[str] = []
    for line in section.splitlines():
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = _row(line)
        elif set(line) - set("|:- "):
            found.append(dict(zip(heads, _row(line), strict=True)))
    return found


def _row(line: str) -> list[str]:
    return [cell.strip() for cell in line[1:-1].split("|")]


def side_by_side(pages: dict[str, str]) -> list[str]:
    """Return a Markdown table: a row per case, entry and backend, a column per kind of machine.

    A cell is x eager, with the median milliseconds in brackets; the first table of a section counts.
    """
    kinds = [kind for kind in KINDS if kind in pages]
    known = [case.title for case in CASES.values()]
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for kind in kinds:
        found = sections(pages[kind])
        for title in filter(found.__contains__, known):
            for row in rows(found[title]):
                key = (title, row["entry"], row["backend"])
                cells.setdefault(key, {}).setdefault(kind, _cell(row))
    shown = sorted(cells, key=lambda key: (known.index(key[0]), _order(key[1]), key[2]))
    lines = ["| model | entry | backend | " + " | ".join(KINDS[kind] for kind in kinds) + " |"]
    lines.append("|---|---|---|" + "---:|" * len(kinds))
    before = ""
    for key in shown:
        model = "" if key[0] == before else key[0]
        before = key[0]
        values = (cells[key].get(kind, "") for kind in kinds)
        lines.append(f"| {model} | {key[1]} | {key[2]} | " + " | ".join(values) + " |")
    return lines


def _order(entry: str) -> int:
    known = ("eager", "compile", "naive", "naive-int8", "merged", "int8, 8-bit weights", "int8")
    return known.index(entry) if entry in known else len(known)


def _cell(row: dict[str, str]) -> str:
    took = row["p50 ms"]
    return took if took == "failed" else f"{row['x eager']} ({float(took):.0f} ms)"


def write_side_by_side(docs: Path) -> None:
    """Write the table into docs/benchmarks.md, between its two marks."""
    page = docs / "benchmarks.md"
    page.write_text(
        with_table(page.read_text(encoding="utf-8"), side_by_side(read_pages(docs))),
        encoding="utf-8",
    )


def read_pages(docs: Path) -> dict[str, str]:
    """Return the text of the page of each kind that has one."""
    pages = {kind: docs / "benchmarks" / f"{kind}.md" for kind in KINDS}
    return {kind: p.read_text(encoding="utf-8") for kind, p in pages.items() if p.exists()}


def with_table(text: str, lines: Iterable[str]) -> str:
    """Replace what is between the marks of a page."""
    before, rest = text.split(BEGIN)
    return "\n".join([before + BEGIN, "", *lines, "", END + rest.split(END)[1]])


if __name__ == "__main__":
    main()
