"""Initial model of a run: new weights, a checkpoint, or a frozen SAM with new trained parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from save_deploy.checkpoints.foreign import read_sam, read_vggish
from save_deploy.checkpoints.load import load_model, model_from_state, over_sam
from save_deploy.checkpoints.native import read_native
from save_deploy.checkpoints.weights import is_ours
from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError, SaveDeployError
from save_deploy.model.save import SaveModel
from save_deploy.systems import SYSTEMS


def initial_model(
    preset: str = "vit_t",
    *,
    res: int = 256,
    system: str | None = None,
    switches: dict[str, Any] | None = None,
    init: Path | None = None,
    sam: Path | None = None,
    vggish: Path | None = None,
    seed: int = 0,
) -> SaveModel:
    """Return a trainable SaveModel at `res`, any multiple of 32.

    init: checkpoint of this system at any resolution, whose weights are all used (an adapter-only
        one needs its sam too).
    sam, without init: SAM's weights with new trained parts. Image adapters start as identity (zero
        last norm).
    vggish: VGGish weights, with sam only; random without it.
    system: default is that of `init`, else save.
    Raises CheckpointError and SaveDeployError.
    """
    torch.manual_seed(seed)
    changes = {**(switches or {}), "window_pad": "exact_skip"}
    if init is not None:
        return _from_checkpoint(init, res, system, sam=sam, vggish=vggish)
    system = system or "save"
    if sam is None:
        if vggish is not None:
            raise SaveDeployError(
                "--vggish needs --sam",
                got="--vggish without --sam",
                expected="both, or none",
            )
        # new weights may have any resolution; presets allow only those for export
        config = SaveConfig.of_system(system, preset, res=256, **changes).replace(res=res)
        return fresh_model(config)
    base, found = read_sam(sam)
    config = SaveConfig.of_system(system, found, res=256, **changes)
    if config.image_adapter == "med2d":
        config = config.replace(image_adapter_init="zero_out_norm")
    config = config.replace(res=res)
    state = fresh_model(config).state_dict()
    # SAM-Med2D files contain image adapters, which not every system has
    state.update({k: v for k, v in base.items() if k in state or ".adapter." not in k})
    if vggish is not None:
        state.update(read_vggish(vggish))
    return _trainable(model_from_state(config, state, source=str(sam)))


def _from_checkpoint(
    init: Path, res: int, system: str | None, *, sam: Path | None, vggish: Path | None
) -> SaveModel:
    if not is_ours(init):
        model = load_model(init, sam=sam, vggish=vggish)
        state, config = model.state_dict(), model.config
    else:
        if vggish is not None:
            raise SaveDeployError(
                "two sources of VGGish", got="--init and --vggish", expected="the checkpoint's own"
            )
        state, config, kind = read_native(init)
        if kind == "adapter":
            state = over_sam(state, config, sam, init)
        elif sam is not None:
            raise SaveDeployError(
                "two initial models given",
                got=f"--sam {sam} and the complete {init.name}",
                expected="one of them",
            )
    if system is not None and not _same_system(system, config.system):
        raise CheckpointError(
            "checkpoint of another system",
            got=f"{SYSTEMS[config.system].title} in {init}",
            expected=SYSTEMS[system].title,
        )
    config = config.replace(res=res, window_pad="exact_skip", system=system or config.system)
    return _trainable(model_from_state(config, state, source=str(init)))


def _same_system(asked: str, found: str) -> bool:
    """Return True for equal systems.

    SAMA-AVS-FT starts from SAMA-AVS, which is the same network.
    """
    return asked == found or {asked, found} == {"sama_avs", "sama_avs_ft"}


def fresh_model(config: SaveConfig) -> SaveModel:
    """Return a model with new weights.

    Absolute positions are small random values, not zeros as in SAM.
    """
    model = SaveModel(config)
    nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.02)
    return model


def _trainable(model: SaveModel) -> SaveModel:
    model.requires_grad_(True)
    return model.train()
