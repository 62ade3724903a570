"""The table that train --estimate prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from save_deploy.training.options import Savings


def print_estimate(config: Any, savings: Savings, micro_batch: int, *, freeze_sam: bool) -> None:
    """Memory of a step with nothing saved, without one saving each, and with all."""
    from rich.console import Console
    from rich.table import Table

    from save_deploy.training.estimate import CARD_BYTES, GIB, with_and_without

    rows = with_and_without(config, savings, micro_batch=micro_batch, freeze_sam=freeze_sam)
    console = Console(width=None if Console().is_terminal else 132)
    table = Table(
        title=f"{config.system} on {config.name} at {config.res} px, {micro_batch} frames at once: GiB",
        title_justify="left",
    )
    parts = ("frozen", "trained", "gradients", "moments", "activations", "reserve", "total")
    for i, column in enumerate(("", *parts, "24 GB card")):
        table.add_column(column, justify="left" if i == 0 else "right")
    for name, found in rows:
        cells = [f"{getattr(found, part) / GIB:.2f}" for part in parts]
        table.add_row(name, *cells, "fits" if found.total <= CARD_BYTES else "too large")
    console.print(table)
    print(
        "activations: most bytes alive in two forward and backward passes on fake tensors, beyond "
        "weights and gradients;\nmoments: AdamW, 8 or 4 bytes a trained parameter; reserve: CUDA "
        "context 0.6 GiB and 5 % fragmentation. Not run on a GPU."
    )
