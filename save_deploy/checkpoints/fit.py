"""Check that tensors match a configuration, by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError
from save_deploy.model.save import SaveModel
from save_deploy.systems import comes_with_sam

_SHOWN = 8


def meta_state(config: SaveConfig, kind: str = "full") -> dict[str, Tensor]:
    """Return names and shapes of a checkpoint of this kind, as meta tensors."""
    with torch.device("meta"):
        state = SaveModel(config).state_dict()
    if kind == "full":
        return state
    return {k: v for k, v in state.items() if not comes_with_sam(k, config.system, config.depth)}


def check_fit(
    config: SaveConfig, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, source: str
) -> None:
    """Raise CheckpointError with the missing, unknown and wrongly shaped tensors."""
    problems = [f"missing {k}" for k in wanted if k not in found]
    problems += [f"unknown {k}" for k in found if k not in wanted]
    problems += [
        f"shape of {k}: {tuple(found[k].shape)}, expected {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in found and found[k].shape != v.shape
    ]
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + (
            f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        )
        raise CheckpointError(
            f"{len(problems)} tensors of the checkpoint do not fit {config.name} at {config.res} px",
            got=shown,
            expected=f"exactly the {len(wanted)} tensors of this configuration",
            hint=f"check that {source} belongs to this configuration",
        )
