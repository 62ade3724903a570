"""Files and data of an export, looked at before torch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from save_deploy.bundle import Manifest
from save_deploy.calibration.table import CalibrationTable
from save_deploy.data.open import open_dataset
from save_deploy.export.options import CalibrationOptions, ExportOptions
from save_deploy.weight_files import check_given


def check_inputs(options: ExportOptions) -> None:
    """Raise CheckpointError for a weight file that is missing or damaged, DataError for a dataset that
    cannot be opened, and for a wrong table, BundleError for a wrong bundle to reuse.

    What is inside of weights and clips is checked when they are read.
    """
    check_given(options.checkpoint, options.sam)
    open_dataset(options.data, split="test")
    if not options.precision.quantized:
        return
    if options.search.reuse is not None:
        Manifest.read(options.search.reuse)
    elif options.calibration.table is not None:
        CalibrationTable.read(options.calibration.table)
    else:
        check_calibration(options.calibration, options.data)


def check_calibration(options: CalibrationOptions, data: str) -> None:
    """Raise DataError for calibration data that cannot be opened.

    data: dataset for options that name none.
    """
    from save_deploy.calibration.select import check_data

    check_data(options.data or data, options.pairs, options.split, skip_bad=options.skip_bad)


def check_calibrate(checkpoint: Path | None, sam: Path | None, options: CalibrationOptions) -> None:
    """Raise as check_inputs does, for save-calibrate."""
    check_given(checkpoint, sam)
    check_calibration(options, "scenes")
