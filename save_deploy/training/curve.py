"""Plot of curve.jsonl: loss and validation M_J over steps."""

from __future__ import annotations

import json
from pathlib import Path

from save_deploy.files import new_file


def plot_curve(run: Path) -> Path | None:
    """Write curve.png of a run. Returns None when matplotlib (extra `train`) is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    score = figure.subplots()
    score.plot(steps, [row["m_j"] for row in rows], "o-", color="tab:blue")
    score.set(xlabel="step", ylim=(0, 100))
    score.set_ylabel("validation M_J", color="tab:blue")
    loss = score.twinx()
    loss.plot(steps, [row["mask"] for row in rows], ".--", color="tab:orange")
    loss.set_ylabel("mask loss of one batch", color="tab:orange")
    path = run / "curve.png"
    with new_file(path, what="the learning curve") as partial:
        figure.savefig(partial, dpi=120)
    return path
