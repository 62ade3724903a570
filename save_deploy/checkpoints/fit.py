"""Check that tensors match a configuration, by names and shapes.

Position tables of another resolution match: load.py resizes them after the check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from save_deploy.config import MAX_RES, PATCH, SaveConfig
from save_deploy.errors import CheckpointError
from save_deploy.model.save import SaveModel
from save_deploy.systems import comes_with_sam

POS_EMBED = "image_encoder.pos_embed"
_GRIDS = range(1, MAX_RES // PATCH + 1)  # sides of a position table
_SHOWN = 8


def meta_state(config: SaveConfig, kind: str = "full") -> dict[str, Tensor]:
    """Return names and shapes of a checkpoint of this kind, as meta tensors."""
    with torch.device("meta"):
        state = SaveModel(config).state_dict()
    if kind == "full":
        return state
    return {k: v for k, v in state.items() if not comes_with_sam(k, config.system, config.depth)}


def position_tables(config: SaveConfig) -> tuple[str, ...]:
    """Return the names of the tensors whose size follows from the resolution."""
    blocks = (f"image_encoder.blocks.{i}.attn.rel_pos_" for i in config.global_blocks)
    return (POS_EMBED, *(block + axis for block in blocks for axis in "hw"))


def fits(name: str, shape: Sequence[int], wanted: Sequence[int], config: SaveConfig) -> bool:
    """Return True for the wanted shape, and for that of a position table of another resolution.

    pos_embed: (1,g,g,C). rel_pos of a global block: (L,head_dim).
    """
    shape, wanted = tuple(shape), tuple(wanted)
    if shape == wanted or name not in position_tables(config):
        return shape == wanted
    if name == POS_EMBED:
        return any(shape == (1, g, g, wanted[-1]) for g in _GRIDS)
    return len(shape) == 2 and shape[0] > 0 and shape[1] == wanted[1]


def check_fit(
    config: SaveConfig, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, source: str
) -> None:
    """Raise CheckpointError with the missing, unknown and wrongly shaped tensors."""
    problems = [f"missing {k}" for k in wanted if k not in found]
    problems += [f"unknown {k}" for k in found if k not in wanted]
    problems += [
        f"shape of {k}: {tuple(found[k].shape)}, expected {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in found and not fits(k, found[k].shape, v.shape, config)
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
