"""save-deploy checkpoint: inspect and convert weight files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import Sam, Vggish

_SHOWN = 6


def inspect(
    file: Annotated[Path, typer.Argument(help="A safetensors or PyTorch file of any project.")],
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="Write it to this file; alone: print it.", show_default=False),
    ] = None,
) -> None:
    """Show the layout of a weight file, its trained parts, and what loading drops.

    Reads no weights.
    """
    from save_deploy.weight_files import check_weights

    check_weights(file)
    # late import: a damaged file must not wait for torch
    from rich.table import Table

    from save_deploy.checkpoints.inspect import inspect_checkpoint
    from save_deploy.console import new_console

    found = inspect_checkpoint(file)
    size = f"{found.size_bytes / 1e6:.1f} MB, {found.parameters:,} parameters"
    print(f"{file}: {found.layout}, {size}")
    if found.kind:
        print(f"format {found.format_version}, {found.kind} weights")
    if found.system:
        on = f" on {found.backbone}" if found.backbone else ""
        print(f"{found.system}{on}" + (f" at {found.res} px" if found.res else ""))
    for what, values in (("switches", found.config), ("notes", found.notes)):
        if values:
            print(f"{what}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    console = new_console()
    table = Table()
    for i, column in enumerate(("part", "tensors", "parameters", "types", "MB", "learns")):
        table.add_column(column, justify="right" if i in (1, 2, 4) else "left")
    for part in found.parts:
        table.add_row(
            part.name,
            str(part.tensors),
            f"{part.parameters:,}",
            ", ".join(part.dtypes),
            f"{part.bytes / 1e6:.1f}",
            "trained" if part.trained else "frozen",
        )
    console.print(table)
    for line in found.remarks:
        print(f"- {line}")
    for what, names in (
        ("a load drops", found.dropped),
        ("unused here", found.unused),
        ("missing", found.missing),
    ):
        if names:
            more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            print(f"{what}: " + ", ".join(names[:_SHOWN]) + more)
    if found.next:
        print(f"next: {found.next}")
    if json_out is not None:
        from save_deploy.files import write_text

        write_text(json_out, json.dumps(found.to_dict(), indent=2) + "\n", what="the report")


def convert(
    file: Annotated[
        Path, typer.Argument(help="A checkpoint of any known layout, or of any with --map.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    layout: Annotated[
        str, typer.Option(help="save (our .safetensors), sama_avs, gavs or sam_med2d (.pth).")
    ] = "save",
    sam: Sam = None,
    vggish: Vggish = None,
    res: Annotated[
        int | None, typer.Option(help="Resize position tables to this side.", show_default=False)
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="TOML file that says what the names of an unknown layout mean (docs/checkpoints.md).",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Convert a checkpoint of another project to ours, or ours to another layout."""
    from save_deploy.weight_files import check_given

    check_given(file, sam, vggish)
    from save_deploy.checkpoints.convert import convert as run_convert

    done = run_convert(
        file, out, layout=layout, sam=sam, vggish=vggish, res=res, names=names, force=force
    )
    for line in done.mapped.lines() if done.mapped else ():
        print(line)
    if done.left_out:
        print(f"left out, {layout} has no place for them: {', '.join(done.left_out[:_SHOWN])}")
    print(
        f"checkpoint: {done.path}, {done.tensors} tensors   (save-deploy checkpoint inspect {out})"
    )
