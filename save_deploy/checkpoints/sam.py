"""SAM's official .pth files (vit_b_01ec64, vit_l_0b3195, vit_h_4b8939) and VGGish's, as tensors."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from save_deploy.config import PRESETS
from save_deploy.errors import CheckpointError

_PATCH_KEY = "image_encoder.patch_embed.proj.weight"


def read_pth(path: Path) -> dict[str, Tensor]:
    """A .pth that is one dict of tensors -> that dict, memory-mapped. Code in it is never run."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "checkpoint holds more than tensors and is not opened",
            got=f"{path}: {_what_it_holds(error)}",
            expected="a dict of tensors",
            hint="save only the weights: torch.save(model.state_dict(), PATH), or write safetensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            "checkpoint cannot be read",
            got=f"{path}: {str(error).splitlines()[0].split('. ')[0]}",
            expected="a complete PyTorch file",
            hint="download or copy it again: it looks truncated or is not a PyTorch file",
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(
            "checkpoint is not a plain dict of tensors",
            got=str(path),
            expected="SAM's official .pth format",
        )
    return loaded


def _what_it_holds(error: pickle.UnpicklingError) -> str:
    """The object torch refused, from its message."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"a reference to {named[1]}" if named else "no tensors that can be read safely"


def read_sam(path: Path) -> tuple[dict[str, Tensor], str]:
    """SAM .pth -> (tensors by key, preset name vit_b, vit_l or vit_h)."""
    state = read_pth(path)
    if _PATCH_KEY not in state:
        raise CheckpointError(
            "not a SAM checkpoint",
            got=f"{path} with keys such as {', '.join(sorted(state)[:3]) or 'none'}",
            expected=_PATCH_KEY,
        )
    dim = state[_PATCH_KEY].shape[0]
    depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("image_encoder.blocks."))
    for name, preset in PRESETS.items():
        if (preset["embed_dim"], preset["depth"]) == (dim, depth):
            return {k: v.float() for k, v in state.items()}, name
    raise CheckpointError(
        "SAM checkpoint of unknown size",
        got=f"width {dim}, depth {depth}",
        expected=", ".join(f"{n} {p['embed_dim']}x{p['depth']}" for n, p in PRESETS.items()),
    )


def read_vggish(path: Path) -> dict[str, Tensor]:
    """vggish-10086976.pth -> tensors under our prefix `audio_encoder.`."""
    return {f"audio_encoder.{key}": value.float() for key, value in read_pth(path).items()}
