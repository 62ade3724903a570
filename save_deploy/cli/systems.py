"""save-deploy systems: list the systems that the paper compares."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from save_deploy.cli.options import Threads


def systems(
    backbone: Annotated[str, typer.Option(help="vit_t, vit_b, vit_l or vit_h.")] = "vit_b",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Also train a step, score, export and time each, with random weights."
        ),
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="Comma-separated systems.", show_default=False)
    ] = None,
    res: Annotated[int, typer.Option(help="224, 256 or 1024.")] = 256,
    rounds: Annotated[int, typer.Option(min=3, help="Timing rounds.")] = 10,
    threads: Threads = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write the table to this file; alone: print it.", show_default=False
        ),
    ] = None,
) -> None:
    """List the systems the paper compares: parameters, what each trains; with --measure, proof that
    each trains, scores and exports."""
    from rich.table import Table

    from save_deploy.console import new_console
    from save_deploy.progress import progress
    from save_deploy.systems import SYSTEMS, system
    from save_deploy.training.systems_table import COLUMNS, MEASURED, size_row

    names = only.split(",") if only else list(SYSTEMS)
    rows = [size_row(name, system(name), backbone, res) for name in names]
    if measure:
        with progress(f"measuring systems on {backbone}", len(rows)) as advance:
            for row in rows:
                row.update(measure_system(row["key"], backbone, res, rounds, threads))
                advance(row["system"])
    columns = COLUMNS + (MEASURED if measure else ())
    console = new_console(160)
    table = Table(title=f"{backbone} at {res} px", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("system", "learns") else "right")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    console.print(table)
    for name in names:
        if system(name).note:
            print(f"{system(name).title}: {system(name).note}")
    if json_out is not None:
        from save_deploy.files import write_text

        write_text(json_out, json.dumps(rows, indent=2) + "\n", what="the report")
        print(f"written: {json_out}")


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def measure_system(
    key: str, backbone: str, res: int, rounds: int, threads: int | None
) -> dict[str, Any]:
    """Measure a system with random weights.

    Speed, parity and trained parts do not depend on the values of the weights.
    """
    import numpy as np

    from save_deploy.bundle import Manifest
    from save_deploy.checkpoints import load_model
    from save_deploy.checkpoints.random import write_random_checkpoint
    from save_deploy.config import SaveConfig
    from save_deploy.export.export import export
    from save_deploy.export.options import ExportOptions
    from save_deploy.runtime.golden import read_golden
    from save_deploy.training.systems_table import scene_batch, try_score, try_step

    with tempfile.TemporaryDirectory(prefix="save_systems_") as folder:
        path = Path(folder) / "random.safetensors"
        write_random_checkpoint(path, SaveConfig.of_system(key, backbone, res=res))
        options = ExportOptions(
            checkpoint=path, res=res, n_golden=2, out=Path(folder) / "bundle", rounds=rounds,
            threads=threads,
        )  # fmt: skip
        eager, graph = export(options).rows[:2]
        logits = read_golden(options.folder, Manifest.read(options.folder)).answers.mask_logits
        model = load_model(path)
        scores = try_score(model)
        step = try_step(model, scene_batch(res))
    assert graph.parity is not None
    return {
        "a step": step,
        "scores": scores,
        # random weights give logits of any size: the error counts against their range
        "error/range": f"{graph.parity.max_abs_err / float(np.ptp(logits)):.0e}",
        "eager ms": f"{eager.latency.p50_ms:.0f}",
        "ONNX ms": f"{graph.latency.p50_ms:.0f}",
        "x eager": graph.speedup_text,
    }
