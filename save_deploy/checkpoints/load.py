"""Path -> SaveModel, strictly: every tensor that does not fit is named."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from save_deploy.checkpoints.native import read_native
from save_deploy.checkpoints.positions import resize_positions
from save_deploy.checkpoints.sam import read_pth, read_sam
from save_deploy.config import SaveConfig, check_resolution
from save_deploy.errors import CheckpointError
from save_deploy.model.save import PIXEL_MEAN, PIXEL_STD, SaveModel

_SHOWN = 8


def builtin_path() -> Path:
    """The checkpoint that comes with the package (vit_t at 256 px; see MODEL_CARD.md beside it)."""
    return Path(__file__).parents[1] / "assets" / "save_vit_t_256.safetensors"


def load_model(
    path: Path | None = None, *, res: int | None = None, sam: Path | None = None
) -> SaveModel:
    """Checkpoint -> eager model in eval mode at resolution `res` (default: as trained).

    path: our safetensors (full or adapter-only) or None for the built-in one. sam: SAM's official
    .pth, required by an adapter-only file. Position tables are resized. Raises CheckpointError.
    """
    path = path or builtin_path()
    if path.suffix in (".pth", ".pt") and path.is_file():
        _refuse_pth(path)
    state, config, kind = read_native(path)
    if res is not None:
        check_resolution(res)
        config = config.replace(res=res)
    if kind == "adapter":
        state = _with_base(state, config, sam)
    elif sam is not None:
        raise CheckpointError(
            "a SAM base was given but the checkpoint is complete",
            got=f"--sam {sam}",
            expected="an adapter-only file",
        )
    return model_from_state(config, resize_positions(state, config), source=str(path))


def model_from_state(config: SaveConfig, state: dict[str, Tensor], *, source: str) -> SaveModel:
    """Build the model around these tensors (no copy); refuse unmatched keys, shapes and NaN."""
    with torch.device("meta"):
        model = SaveModel(config)
    model.pixel_mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
    model.pixel_std = torch.tensor(PIXEL_STD).view(3, 1, 1)
    wanted = model.state_dict()
    problems = [f"missing {k}" for k in wanted if k not in state]
    problems += [f"unknown {k}" for k in state if k not in wanted]
    problems += [
        f"shape of {k}: {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
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
    broken = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors contain NaN or infinite values",
            got="; ".join(broken[:_SHOWN]),
            expected="finite weights",
            hint="export an earlier checkpoint of the training run",
        )
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    return model.eval()


def _with_base(state: dict[str, Tensor], config: SaveConfig, sam: Path | None) -> dict[str, Tensor]:
    """Adapter-only tensors over the frozen SAM they were trained on."""
    if sam is None:
        raise CheckpointError(
            "this checkpoint holds only the trained parts",
            got="no SAM base",
            expected=f"SAM's official {config.name} .pth",
            hint="add --sam sam_vit_*.pth",
        )
    if not sam.is_file():
        raise CheckpointError(
            "SAM checkpoint not found", got=str(sam), expected="SAM's official .pth"
        )
    base, preset = read_sam(sam)
    if preset != config.name:
        raise CheckpointError(
            "SAM base of another size", got=f"{preset} in {sam}", expected=config.name
        )
    return {**base, **state}


def _refuse_pth(path: Path) -> None:
    state = read_pth(path)
    is_sam = any(k.startswith("image_encoder.blocks.") for k in state)
    has_audio = any(k.startswith(("audio_adapter.", "audio_encoder.")) for k in state)
    if is_sam and not has_audio:
        raise CheckpointError(
            "this is SAM without SAVE's trained parts",
            got=str(path),
            expected="a SAVE checkpoint (.safetensors)",
            hint=f"save-export ADAPTERS.safetensors --sam {path}   (save-train --sam makes them)",
        )
    raise CheckpointError(
        "unknown .pth layout",
        got=f"{path} with keys such as {', '.join(sorted(state)[:3]) or 'none'}",
        expected="a SAVE checkpoint (.safetensors)",
    )
