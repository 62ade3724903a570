"""Plot of a precision search: mask disagreement of each branch of each block alone in INT8."""

from __future__ import annotations

from pathlib import Path

from save_deploy.export.quantize.search import BRANCHES, SearchResult, branch_of

_COLORS = {"attn": "#08519c", "mlp": "#6baed6", "adapter": "#fd8d3c"}


def plot_sensitivity(found: SearchResult, path: Path) -> bool:
    """Write bars per block and branch, hatched where the unit stays in float.

    Returns False without matplotlib.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    n_blocks = 1 + max(int(s.unit.split(".")[1]) for s in found.sensitivity)
    figure, axes = pyplot.subplots(figsize=(max(6, 0.55 * n_blocks), 3.2), layout="constrained")
    for i, branch in enumerate(BRANCHES):
        own = [s for s in found.sensitivity if branch_of(s.unit) == branch]
        if not own:
            continue
        bars = axes.bar(
            [int(s.unit.split(".")[1]) + 0.27 * (i - 1) for s in own],
            [100 * (1 - s.agreement) for s in own],
            width=0.25,
            color=_COLORS[branch],
            label=f"{branch} (saves {found.saved[branch]:.3g} {found.cost_unit})",
        )
        for bar, s in zip(bars, own, strict=True):
            if s.unit in found.float_units:
                bar.set(hatch="////", edgecolor="black")
    axes.set_xticks(range(n_blocks))
    axes.set_xlabel("block (hatched: stays in float)")
    axes.set_ylabel("mask disagreement, %")
    axes.set_title(f"one branch alone in INT8, {found.frames} frames of {found.data}", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
