"""Table of the systems: parameters, trained parts, and a check that a step trains exactly these."""

from __future__ import annotations

import math
from typing import Any

import torch

from save_deploy.config import SaveConfig
from save_deploy.data.scenes import Scenes
from save_deploy.model.save import SaveModel
from save_deploy.systems import System
from save_deploy.training.batches import Batch
from save_deploy.training.evaluate import evaluate
from save_deploy.training.parameters import trainable_parameters
from save_deploy.training.step import TrainStep

COLUMNS = ("system", "parameters", "learning", "learns")
MEASURED = ("a step", "scores", "error/range", "eager ms", "ONNX ms", "x eager")


def size_row(key: str, system: System, backbone: str, res: int) -> dict[str, Any]:
    """Return the parameter counts of a system, including VGGish. Uses the meta device."""
    with torch.device("meta"):
        model = SaveModel(SaveConfig.of_system(key, backbone, res=res))
    learned = trainable_parameters(model, freeze_sam=True)
    return {
        "key": key,
        "system": system.title,
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning": sum(p.numel() for p in learned.values()),
        "learns": ", ".join(system.trains) or "nothing",
    }


def try_step(model: SaveModel, batch: Batch) -> str:
    """Run one AdamW step on the model in place and check the changed parameters.

    Returns 'yes', 'nothing to train', or the fault: a trained parameter that did not change, or a
    frozen one that did.
    """
    learned = trainable_parameters(model, freeze_sam=True)
    if not learned:
        return "nothing to train"
    frozen = {n: p._version for n, p in model.named_parameters() if n not in learned}
    before = {n: p.detach().clone() for n, p in learned.items()}
    optimizer = torch.optim.AdamW(learned.values(), lr=1e-3, weight_decay=0.0)
    loss, _ = TrainStep(model)(batch)
    loss.backward()
    optimizer.step()
    # a dead ReLU may keep one element constant, but not a whole tensor
    still = [n for n, p in learned.items() if torch.equal(p, before[n])]
    moved = [n for n, p in model.named_parameters() if frozen.get(n, p._version) != p._version]
    if not torch.isfinite(loss):
        return f"loss {loss.item()}"
    if still or moved:
        return f"unmoved {still[:2]}, moved {moved[:2]}"
    return "yes"


def scene_batch(res: int, n: int = 2) -> Batch:
    """Return the first frames of n generated scenes."""
    from save_deploy.data.compose import Staging
    from save_deploy.training.batches import MixedSamples, batches
    from save_deploy.training.step import N_CLASSES

    samples = MixedSamples(
        {"scenes": 1.0}, res=res, staging=Staging(size_px=res, n_frames=1), seed=0,
        n_classes=N_CLASSES,
    )  # fmt: skip
    return next(batches(samples, batch_size=n, first_step=0, last_step=1))


def try_score(model: SaveModel, n_clips: int = 1) -> str:
    """Score generated scenes and return 'yes' for a finite score.

    Random weights give no useful value.
    """
    model.requires_grad_(False)
    score = evaluate(model, Scenes(n_clips=n_clips))
    return "yes" if math.isfinite(score.m_j) and score.n_frames == 5 * n_clips else "no"
