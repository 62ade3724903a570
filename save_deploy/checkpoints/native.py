"""Our checkpoint format: a safetensors file with the configuration in its header.

kind "full" has every tensor. kind "adapter" leaves out the tensors of a frozen SAM .pth that its
system does not train (systems.comes_with_sam).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError
from save_deploy.files import new_file
from save_deploy.model.save import SaveModel
from save_deploy.systems import comes_with_sam
from save_deploy.weight_files import FORMAT, FORMAT_VERSION, open_safetensors, read_metadata

DTYPES = {  # safetensors' names
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

_TABLES = re.compile(r"\.(pos_embed|rel_pos_[hw])$")


def save_checkpoint(
    path: Path,
    model: SaveModel,
    *,
    kind: str = "full",
    dtype: torch.dtype | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically.

    dtype: type to convert the weights to (float16 halves the file).
    notes: JSON-compatible values for the header.
    """
    system, depth = model.config.system, model.config.depth
    state = {
        k: v
        for k, v in model.state_dict().items()
        if kind == "full" or not comes_with_sam(k, system, depth)
    }
    tensors = {k: v.detach().to(dtype or v.dtype).contiguous() for k, v in state.items()}
    # the form of padding is not part of a checkpoint, because both forms are equal
    config = model.config.replace(window_pad="materialise")
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": config.to_json(),
        "notes": json.dumps(notes or {}, sort_keys=True),
    }
    with new_file(path, what="the checkpoint") as partial:
        save_file(tensors, str(partial), metadata=metadata)
        os.chmod(partial, 0o644)  # safetensors writes 0600: other users could not read it


def read_native(path: Path) -> tuple[dict[str, Tensor], SaveConfig, str]:
    """Return tensors by key as stored, the configuration, and the kind (full or adapter).

    Values are converted after names and shapes are checked (load.py). Raises CheckpointError.
    """
    with open_safetensors(path) as (file, metadata):
        config, kind = read_metadata(metadata)
        read_shapes(file)  # raises for an unsupported type
        return {key: file.get_tensor(key) for key in file.keys()}, config, kind


def sam_fingerprint(state: dict[str, Tensor], config: SaveConfig) -> str:
    """Return a hash of the tensors that an adapter-only checkpoint leaves out.

    Position tables do not count and values do as bfloat16, so that it is the same for SAM's file and
    for a model in training, whose tables are resized and whose frozen weights may be bfloat16.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        if comes_with_sam(key, config.system, config.depth) and not _TABLES.search(key):
            value = state[key].detach().cpu().to(torch.bfloat16).contiguous()
            digest.update(f"{key} {tuple(value.shape)}\n".encode())
            digest.update(value.view(torch.int16).numpy().data)
    return digest.hexdigest()[:16]


def read_header(path: Path) -> tuple[SaveConfig, str]:
    """Return the configuration and the kind, without reading weights. Raises CheckpointError."""
    with open_safetensors(path) as (_, metadata):
        return read_metadata(metadata)


def read_shapes(file: Any) -> dict[str, Tensor]:
    """Return meta tensors of an open safetensors file.

    Raises CheckpointError for an unknown type.
    """
    found = {key: file.get_slice(key) for key in file.keys()}
    unknown = [
        f"{k} of type {s.get_dtype()}" for k, s in found.items() if s.get_dtype() not in DTYPES
    ]
    if unknown:
        raise CheckpointError(
            "tensors of an unsupported type", got=unknown[0], expected=", ".join(DTYPES)
        )
    return {
        key: torch.empty(s.get_shape(), dtype=DTYPES[s.get_dtype()], device="meta")
        for key, s in found.items()
    }
