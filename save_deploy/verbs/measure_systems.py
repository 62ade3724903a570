"""One row of the systems table, measured: a step, a score, an export with parity and speed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


def measure_system(
    key: str, backbone: str, res: int, rounds: int, threads: int | None
) -> dict[str, Any]:
    """Random weights: speed, parity and what learns do not depend on their values."""
    from save_deploy.checkpoints import load_model
    from save_deploy.checkpoints.random import write_random_checkpoint
    from save_deploy.config import SaveConfig
    from save_deploy.export.run import ExportOptions, export_bundle
    from save_deploy.training.systems_table import scene_batch, try_score, try_step

    with tempfile.TemporaryDirectory(prefix="save-systems-") as folder:
        path = Path(folder) / "random.safetensors"
        write_random_checkpoint(path, SaveConfig.of_system(key, backbone, res=res))
        options = ExportOptions(
            checkpoint=path, res=res, n_golden=2, out=Path(folder) / "bundle", rounds=rounds,
            threads=threads,
        )  # fmt: skip
        eager, graph = export_bundle(options).rows[:2]
        model = load_model(path)
        scores = try_score(model)
        step = try_step(model, scene_batch(res))
    assert graph.parity is not None
    return {
        "a step": step,
        "scores": scores,
        "ONNX error": f"{graph.parity.max_abs_err:.0e}",
        "agreement": f"{graph.parity.mask_agreement:.5f}",
        "eager ms": f"{eager.latency.p50_ms:.0f}",
        "ONNX ms": f"{graph.latency.p50_ms:.0f}",
        "x eager": f"{graph.speedup:.2f}",
    }
