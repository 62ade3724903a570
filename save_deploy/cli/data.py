"""save-deploy data: write generated datasets, and check dataset folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.errors import DataError

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write, in AVSBench's layout.")]
Subset = Annotated[str, typer.Option(help="s4 (one source) or ms3 (two).")]
Train = Annotated[int, typer.Option(min=0, help="Clips per split.")]
Some = Annotated[int, typer.Option(min=0)]
Size = Annotated[int, typer.Option(min=64, help="Frame side in px.")]
Seed = Annotated[int, typer.Option(min=0)]


def _writer(name: str, what: str) -> Callable[..., None]:
    """Return the command that writes one generated dataset."""

    def write(
        out: Out,
        subset: Subset = "s4",
        train: Train = 100,
        val: Some = 40,
        test: Some = 200,
        size: Size = 256,
        seed: Seed = 0,
    ) -> None:
        from save_deploy.data.write import write_avsbench
        from save_deploy.progress import progress

        counts = {"train": train, "val": val, "test": test}
        with progress(f"writing {name} {subset}", max(1, sum(counts.values()))) as advance:
            write_avsbench(
                out, name=name, subset=subset, counts=counts, size_px=size, seed=seed,
                on_clip=advance,
            )  # fmt: skip
        print(f"dataset: {out}/   (save-compare BUNDLE --data {out})")

    write.__doc__ = f"Write {what} as an AVSBench dataset: frames, masks, sounds, metadata."
    return write


scenes = _writer("scenes", "drawn scenes")
stamps = _writer("stamps", "scenes of photographed objects and their recordings")


def check(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR[:SUBSET]",
            help="A released dataset: AVSBench S4 or MS3, AVSS, its V3 splits, AVS-Synthetic.",
        ),
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Open every file, not the first clip of each split only.")
    ] = False,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write everything found to this file; alone: print it.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[int, typer.Option(min=1, help="How many problems to print.")] = 20,
) -> None:
    """Report missing and inconsistent parts of a dataset, with found and published counts."""
    from rich.table import Table

    from save_deploy.console import new_console
    from save_deploy.data.check import check_dataset
    from save_deploy.progress import progress

    with progress(f"checking {folder}", None) as advance:
        found = check_dataset(folder, deep=deep, on_item=advance)
    console = new_console()
    table = Table(title=f"{folder}", title_justify="left")
    for i, column in enumerate(("subset", "split", "rows", "frames", "masks", "sounds")):
        table.add_column(column, justify="left" if i < 2 else "right")
    for row in found.splits:
        rows = f"{row.rows} of {row.published} published"
        table.add_row(row.subset, row.split, rows, str(row.frames), str(row.masks), str(row.sounds))
    console.print(table)
    if found.absent:
        print(f"listed in the metadata, media not here: {', '.join(found.absent)}")
    for problem in found.problems[:show]:
        print(f"- {problem}")
    if json_out is not None:
        from save_deploy.files import write_text

        write_text(json_out, json.dumps(found.to_dict(), indent=2) + "\n", what="the report")
        print(f"written: {json_out}")
    if not found.complete:
        more = len(found.problems) - show
        raise DataError(
            f"{len(found.problems)} problem{'s' if len(found.problems) > 1 else ''} in {folder}",
            got="listed above" + (f", and {more} more" if more > 0 else ""),
            expected="every file that the metadata names",
            hint="--skip-bad goes on without the bad clips; --json FILE lists all problems",
        )
    print("complete: every file that the metadata names is there")
