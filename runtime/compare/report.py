"""Write a comparison: terminal table, report.json, report.md, report.html, worst frames as PNG."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from save_deploy.data.transforms import resize_frame
from save_deploy.errors import SaveDeployError
from save_deploy.files import check_results_target
from save_deploy.machine import describe as machine
from save_deploy.machine import read_nvidia, versions
from save_deploy.metrics.margin import flips
from save_deploy.metrics.parity import mask_agreement
from save_deploy.partials import replaced_files
from save_deploy.progress import raise_if_interrupted
from save_deploy.runtime.compare.rows import row_values
from save_deploy.runtime.compare.run import Comparison
from save_deploy.runtime.compare.table import (
    compare_columns,
    log_console,
    markdown_table,
    rich_table,
    table_of,
)
from save_deploy.runtime.compare.worst import worst_row
from save_deploy.runtime.html import Report, ReportFrame, Table, write_html
from save_deploy.runtime.pictures import comparison_strip
from save_deploy.runtime.session import default_threads
from save_deploy.runtime.session.open import ENGINE_BACKENDS

REPORTS = ("report.html", "report.md", "report.json")
PICTURES = "worst_*.png"


def check_folder(folder: Path, *, force: bool = False) -> None:
    """Raise SaveDeployError if the report cannot be written. Called before any measurement.

    An earlier report in the folder is replaced with force only.

    The folder is not created here, so an error in another option leaves no empty folder.
    """
    check_results_target(folder, REPORTS, force=force, option="--report DIR")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".partial-"):
            pass
    except OSError as error:
        raise _not_writable(folder, error) from error


def write_comparison(folder: Path, found: Comparison) -> list[Path]:
    """Write the report's files and return their paths.

    All files are complete before the first one appears. They replace the files of an earlier
    report; other files of the folder remain.
    """
    with replaced_files(folder, what="the report") as partial:
        names = _write(partial, found)
        raise_if_interrupted()
        for old in folder.glob(PICTURES):
            if old.name not in names:
                old.unlink()
    return [folder / name for name in names]


def print_comparison(found: Comparison) -> None:
    """Print one table per dataset, then notes, text sections, checks and skipped clips."""
    console = log_console()
    columns = compare_columns(eager=found.options.eager)
    for dataset in dict.fromkeys(row.dataset for row in found.rows):
        rows = [row for row in found.rows if row.dataset == dataset]
        console.print(rich_table(table_of(columns, rows), title=dataset, compact=True))
    for line in found.notes:
        console.print(line, markup=False)
    for section in found.sections:
        if isinstance(section.body, str):
            console.print(section.body.replace("\n\n", "\n"), markup=False)
    for check in found.checks:
        word = check.word if check.passed else "FAIL"
        console.print(f"{word}: {check.name} {check.got}, {check.allowed}", markup=False)
    for name, why in found.skipped.items():
        console.print(f"skipped {name}: {why}", markup=False)


def values_of(found: Comparison) -> dict[str, Any]:
    """Return the contents of report.json: every number of the page, and the raw samples."""
    options = found.options
    return {
        "title": found.title,
        "made": found.made,
        "command": found.command,
        "bundles": found.bundles,
        "note": found.note,
        "notes": list(found.notes),
        "metrics": found.rows[0].score.protocol,
        "machine": machine_values(options.threads),
        "versions": library_versions(),
        "data": list(options.data),
        "split": options.split,
        "reference": "eager" if options.eager else "the first bundle",
        "rows": [row_values(row) for row in found.rows],
        "checks": [vars(check) for check in found.checks],
        "verdict": page(found).verdict,
        "worst_frames": [_frame_values(i, frame) for i, frame in enumerate(found.frames, start=1)],
        "skipped": found.skipped,
    }


def page(found: Comparison) -> Report:
    """Return the data of report.html."""
    return Report(
        title=found.title,
        note=found.note,
        machine=machine_values(found.options.threads),
        versions=library_versions(),
        protocol=found.rows[0].score.protocol,
        rows=found.rows,
        frames=found.frames,
        sections=found.sections,
        checks=found.checks,
        made=found.made,
        command=found.command,
        bundles=found.bundles,
    )


def machine_values(threads: int | None) -> dict[str, object]:
    """Return what a timing depends on: processor, memory, threads, any GPUs."""
    gpus = read_nvidia().lines()
    found = {**machine(), "threads": threads or default_threads()}
    return {**found, **({"gpu": "; ".join(gpus)} if gpus else {})}


def library_versions() -> dict[str, str]:
    """Return the versions of the installed packages, and of TensorRT if it was loaded."""
    loaded = {name: sys.modules[name] for name in ENGINE_BACKENDS if name in sys.modules}
    return {**versions(), **{n: str(m.__version__) for n, m in loaded.items()}}


def _write(folder: Path, found: Comparison) -> list[str]:
    report = page(found)
    write_html(folder / "report.html", report)
    text = json.dumps(values_of(found), indent=2, allow_nan=False)
    (folder / "report.json").write_text(text + "\n")
    pictures = [f"worst_{i}.png" for i in range(1, len(found.frames) + 1)]
    for name, frame in zip(pictures, found.frames, strict=True):
        _write_strip(folder / name, frame, "eager" if found.options.eager else "reference")
    (folder / "report.md").write_text(markdown(found))
    return ["report.html", "report.json", "report.md", *pictures]


def _write_strip(path: Path, frame: ReportFrame, reference_label: str) -> None:
    """Write a strip at network size: frame, truth, reference, worst row, flips."""
    reference = frame.reference_mask
    name = worst_row(reference, frame.masks)
    got = frame.masks[name]
    before = ("truth",) if frame.truth is not None else ()
    strip = comparison_strip(
        resize_frame(frame.frame, reference.shape[0]),
        frame.truth,
        reference,
        got,
        flips(reference.astype("float32"), got.astype("float32")),
        labels=(frame.name, *before, reference_label, name, "flips"),
    )
    strip.save(path, format="PNG", optimize=True)


def markdown(found: Comparison) -> str:
    """Return report.md: checks, one table per dataset, skipped clips, worst frames, sections."""
    lines = [
        f"# {found.title}",
        "",
        found.made + (f": `{found.command}`" if found.command else ""),
        "",
    ]
    lines += [f"- {name}: manifest sha256 {digest}" for name, digest in found.bundles.items()]
    lines += [""] if found.bundles else []
    for check in found.checks:
        word = check.word if check.passed else "**FAIL**"
        lines.append(f"- {word}: {check.name} {check.got}, {check.allowed}")
    lines += [""] if found.checks else []
    for dataset in dict.fromkeys(row.dataset for row in found.rows):
        rows = [row for row in found.rows if row.dataset == dataset]
        table = table_of(compare_columns(eager=found.options.eager), rows)
        lines += [f"## {dataset}", "", *markdown_table(table), ""]
    lines += [f"{line}  " for line in found.notes]
    lines += [f"Metrics: {found.rows[0].score.protocol}.", ""]
    if found.skipped:
        lines += ["## Skipped clips", ""]
        lines += [f"- {name}: {why}" for name, why in found.skipped.items()]
        lines.append("")
    if found.frames:
        lines += [
            "## Worst frames: picture, truth, reference, row with the lowest agreement, flips",
            "",
        ]
        for i, frame in enumerate(found.frames, start=1):
            values = _frame_values(i, frame)
            words = f"{frame.name} of {frame.dataset}, {values['row']}: {values['agreement']:.4f}"
            lines += [f"![{words}](worst_{i}.png)", ""]
    for section in found.sections:
        if isinstance(section.body, Table):
            lines += [f"## {section.title}", ""]
            lines += [*markdown_table(section.body, n_left=len(section.body.columns)), ""]
        elif isinstance(section.body, str):
            lines += [f"## {section.title}", "", section.body, ""]
    return "\n".join(lines)


def _frame_values(number: int, frame: ReportFrame) -> dict[str, Any]:
    reference = frame.reference_mask
    row = worst_row(reference, frame.masks)
    return {
        "name": frame.name,
        "dataset": frame.dataset,
        "row": row,
        "agreement": mask_agreement(reference, frame.masks[row]),
        "file": f"worst_{number}.png",
    }


def _not_writable(folder: Path, error: OSError) -> SaveDeployError:
    return SaveDeployError(
        "report cannot be written", got=f"{folder}: {error.strerror}", expected="a folder",
        hint="--report DIR",
    )  # fmt: skip
