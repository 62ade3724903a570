"""The model a run starts from: fresh weights, a checkpoint, or adapters on a frozen SAM."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from save_deploy.checkpoints.load import model_from_state
from save_deploy.checkpoints.native import read_native
from save_deploy.checkpoints.positions import resize_positions
from save_deploy.checkpoints.sam import read_sam, read_vggish
from save_deploy.config import PRESETS, SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.model.save import SaveModel


def initial_model(
    preset: str = "vit_t",
    *,
    res: int = 256,
    init: Path | None = None,
    sam: Path | None = None,
    vggish: Path | None = None,
    seed: int = 0,
) -> SaveModel:
    """A trainable SaveModel at `res` (any multiple of 32).

    init: every weight from a full checkpoint, whatever its resolution. sam: SAM's weights, new
    adapters that start as identity (zero last norm), VGGish from `vggish` (random without it).
    """
    if init is not None and (sam is not None or vggish is not None):
        raise SaveDeployError(
            "two ways to start at once", got="--init with --sam or --vggish", expected="one of them"
        )
    if preset not in PRESETS:
        raise SaveDeployError("unknown preset", got=preset, expected=", ".join(PRESETS))
    torch.manual_seed(seed)
    if init is not None:
        state, config, kind = read_native(init)
        if kind != "full":
            raise SaveDeployError(
                "cannot start from an adapter-only file",
                got=str(init),
                expected="a full checkpoint",
            )
        config = config.replace(res=res, window_pad="exact_skip")
        return _trainable(
            model_from_state(config, resize_positions(state, config), source=str(init))
        )
    config = SaveConfig(name=preset, res=res, window_pad="exact_skip", **PRESETS[preset])
    if sam is None:
        return fresh_model(config)
    base, found = read_sam(sam)
    config = SaveConfig(
        name=found,
        res=res,
        window_pad="exact_skip",
        image_adapter_init="zero_out_norm",
        **PRESETS[found],
    )
    state = fresh_model(config).state_dict()
    state.update(resize_positions(base, config))
    if vggish is not None:
        state.update(read_vggish(vggish))
    return _trainable(model_from_state(config, state, source=str(sam)))


def fresh_model(config: SaveConfig) -> SaveModel:
    """New weights; absolute positions start small instead of SAM's zeros."""
    model = SaveModel(config)
    nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.02)
    return model


def _trainable(model: SaveModel) -> SaveModel:
    model.requires_grad_(True)
    return model.train()
