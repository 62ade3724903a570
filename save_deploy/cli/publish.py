"""save-deploy publish: write a folder for the Hugging Face Hub."""

from __future__ import annotations

from save_deploy.cli.takes import takes
from save_deploy.runtime.hub_options import PublishOptions


@takes(PublishOptions)
def publish(options: PublishOptions) -> None:
    """Write a bundle and its model card as a Hugging Face Hub folder. Nothing is uploaded."""
    from save_deploy.runtime.hub import publish as lay_out

    for note in lay_out(options):
        print(f"note: {note}")
    print(f"{options.out}: bundle and model card; to upload: hf upload USER/NAME {options.out}")
