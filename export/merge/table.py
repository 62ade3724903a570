"""Print a MergeProof as a table."""

from __future__ import annotations

from save_deploy.export.merge.proof import TOLERANCE, MergeProof


def print_proof(proof: MergeProof, *, blocks: bool) -> None:
    """Print one line per rewrite; with `blocks`, also the largest difference of each block."""
    from rich.table import Table

    from save_deploy.console import new_console

    console = new_console()
    exact = "exact" if proof.exact else "NOT EXACT"
    table = Table(
        title=f"merge: {exact} (float64, tolerance {TOLERANCE:.0e} of the largest output)",
        title_justify="left",
        caption=f"{proof.macs_before / 1e9:.4g} -> {proof.macs_after / 1e9:.4g} GMAC per frame; "
        f"off: {', '.join(proof.switched_off) or 'none'}",
        caption_justify="left",
    )
    for name in ("rewrite", "folded", "kept, and why"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "MMAC", "max diff"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in proof.rewrites:
        table.add_row(
            r.name,
            r.folded,
            r.kept,
            _change(r.params_before / 1e6, r.params_after / 1e6, "M"),
            _change(r.macs_before / 1e6, r.macs_after / 1e6),
            f"{r.max_rel_diff:.0e}",
        )
    console.print(table)
    if blocks:
        each = ", ".join(f"{i}: {diff:.0e}" for i, diff in enumerate(proof.blocks))
        console.print(f"blocks, all rewrites together: {each}", soft_wrap=True)


def _change(before: float, after: float, unit: str = "") -> str:
    values = [f"{before:.4g}{unit}", f"{after:.4g}{unit}"]
    return values[0] if values[0] == values[1] else " -> ".join(values)
