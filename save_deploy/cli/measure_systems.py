"""One row of the systems table, measured: a step, a score, an export with parity and speed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


def measure_system(
    key: str, backbone: str, res: int, rounds: int, threads: int | None
) -> dict[str, Any]:
    """Random weights: speed, parity and what learns do not depend on their values."""
    import numpy as np

    from save_deploy.checkpoints import load_model
    from save_deploy.checkpoints.random import write_random_checkpoint
    from save_deploy.config import SaveConfig
    from save_deploy.export.export import export
    from save_deploy.export.options import ExportOptions
    from save_deploy.training.systems_table import scene_batch, try_score, try_step

    with tempfile.TemporaryDirectory(prefix="save-systems-") as folder:
        path = Path(folder) / "random.safetensors"
        write_random_checkpoint(path, SaveConfig.of_system(key, backbone, res=res))
        options = ExportOptions(
            checkpoint=path, res=res, n_golden=2, out=Path(folder) / "bundle", rounds=rounds,
            threads=threads,
        )  # fmt: skip
        eager, graph = export(options).rows[:2]
        logits = np.load(options.folder / "golden" / "mask_logits.npy")
        model = load_model(path)
        scores = try_score(model)
        step = try_step(model, scene_batch(res))
    assert graph.parity is not None
    return {
        "a step": step,
        "scores": scores,
        # random weights give logits of any size: the error counts against their range
        "error/range": f"{graph.parity.max_abs_err / float(np.ptp(logits)):.0e}",
        "eager ms": f"{eager.latency.p50_ms:.0f}",
        "ONNX ms": f"{graph.latency.p50_ms:.0f}",
        "x eager": f"{graph.speedup:.2f}",
    }
