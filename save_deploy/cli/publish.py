"""save-deploy publish: a folder for the Hugging Face Hub."""

from __future__ import annotations

from save_deploy.cli.takes import takes
from save_deploy.runtime.hub import PublishOptions


@takes(PublishOptions)
def publish(options: PublishOptions) -> None:
    """Lay a bundle out for the Hugging Face Hub, with a model card. Nothing is uploaded."""
    from save_deploy.runtime.hub import publish as lay_out

    for note in lay_out(options):
        print(f"note: {note}")
    print(f"{options.out}: the bundle with its card, for: hf upload USER/NAME {options.out}")
