"""save-calibrate: measure a calibration table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from save_deploy.cli.options import Checkpoint, Sam, Threads
from save_deploy.cli.takes import takes
from save_deploy.export.options import CalibrationOptions
from save_deploy.machine import peak_memory_mib


@takes(CalibrationOptions, leave_out=["table"])
def calibrate(
    options: CalibrationOptions,
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    res: Annotated[int, typer.Option(help="Input side in px: 224, 256 or 1024.")] = 256,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")] = Path(
        "calibration.json"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    threads: Threads = None,
) -> None:
    """Measure the ranges for --int8 and --fp8 and write them to a reusable table."""
    import time

    from save_deploy.config import check_resolution
    from save_deploy.export.inputs import check_calibrate
    from save_deploy.files import check_file_target

    check_resolution(res)
    check_file_target(out, force=force)
    check_calibrate(checkpoint, sam, options)
    # late import: option errors must not wait for torch
    from save_deploy.export.quantize.calibrate import CALIBRATE_STAGES, calibrate_checkpoint
    from save_deploy.progress import Stages

    started = time.monotonic()
    stages = Stages(CALIBRATE_STAGES)
    try:
        table = calibrate_checkpoint(
            checkpoint, sam, res, options, out, force=force, threads=threads, on_stage=stages
        )
    finally:
        stages.finish()
    data = table.data
    print(f"{len(table.tensors)} tensors on {data['pairs']} pairs of {data['source']}")
    for what, counts in data["strata"].items():
        shown = ", ".join(f"{k or 'none'} {n}" for k, n in list(counts.items())[:8])
        print(f"  {what}: {shown}{', ...' if len(counts) > 8 else ''}")
    for missing in data["not_stratified"]:
        print(f"  not stratified by {missing}")
    print_skipped(data)
    print(
        f"default method {table.method}; {len(table.smoothing)} norms smoothed, "
        f"{len(table.means)} biases corrected"
    )
    print(
        f"{time.monotonic() - started:.0f} s, peak memory {peak_memory_mib():.0f} MiB"
    )  # not in the table: the same command must write the same file
    print(f"table: {out}   (save-export --int8 --calibration-table {out})")


def print_skipped(data: dict[str, Any]) -> None:
    """Print the clips that calibration skipped, and the reasons. data: entry of its table."""
    for name, why in data.get("skipped", {}).items():
        print(f"skipped {name}: {why}")
