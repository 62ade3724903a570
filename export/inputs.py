"""Files and data of an export, looked at before torch is imported, which takes seconds."""

from __future__ import annotations

from save_deploy.data.open import open_dataset
from save_deploy.errors import CheckpointError
from save_deploy.export.options import ExportOptions


def check_inputs(options: ExportOptions) -> None:
    """Raise CheckpointError for a weight file that is missing, DataError for a dataset that cannot be
    opened. What is in the files is checked when they are read."""
    files = {"checkpoint": options.checkpoint, "SAM checkpoint": options.sam}
    for what, path in files.items():
        if path is not None and not path.is_file():
            raise CheckpointError(
                f"{what} not found", got=str(path), expected="a PyTorch or safetensors file"
            )
    open_dataset(options.data, split="test")
