"""save-deploy triton: write a model repository for NVIDIA Triton."""

from __future__ import annotations

from save_deploy.cli.takes import takes
from save_deploy.runtime.triton.options import TritonOptions


@takes(TritonOptions)
def triton(options: TritonOptions) -> None:
    """Write a Triton model repository and example clients from a bundle."""
    from save_deploy.runtime.triton.repository import write_repository

    written = write_repository(options)
    for note in written.notes:
        print(f"note: {note}")
    print(
        f"{options.out}: {', '.join(written.models)} on {options.engine}, "
        f"{options.instances} x {written.threads} threads"
    )
