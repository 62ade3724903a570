"""Position tables resized to a resolution, once, at load (SPEC 1.2, A8).

Only the absolute table and the relative tables of global blocks depend on the resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from save_deploy.config import SaveConfig


def resize_abs_pos(table: Tensor, grid: int, how: str = "bilinear") -> Tensor:
    """(1,g,g,C) -> (1,grid,grid,C), align_corners=False, no antialias (SAM-Med2D's rule)."""
    if table.shape[1] == grid:
        return table
    planes = table.float().permute(0, 3, 1, 2)  # (1,C,g,g)
    resized = interpolate(planes, (grid, grid), mode=how, align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous().to(table.dtype)


def resize_rel_pos(table: Tensor, length: int) -> Tensor:
    """(L,head_dim) -> (length,head_dim), linear along L, as SAM's get_rel_pos does at run time."""
    if table.shape[0] == length:
        return table
    resized = interpolate(table.float().t()[None], length, mode="linear", align_corners=False)
    return resized[0].t().contiguous().to(table.dtype)


@torch.no_grad()
def resize_positions(state: dict[str, Tensor], config: SaveConfig) -> dict[str, Tensor]:
    """A copy of the state dict whose position tables fit config.res; other tensors are shared."""
    resized = dict(state)
    key = "image_encoder.pos_embed"
    if key in resized:
        resized[key] = resize_abs_pos(resized[key], config.grid, config.pos_interp)
    for i in config.global_blocks:
        for axis in ("h", "w"):
            key = f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"
            if key in resized:
                resized[key] = resize_rel_pos(resized[key], 2 * config.grid - 1)
    return resized
