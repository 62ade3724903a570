"""Our checkpoint: one safetensors file with the configuration in its header.

kind "full" holds every tensor; kind "adapter" leaves out what a frozen SAM .pth brings and its
system does not train (systems.comes_with_sam).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError
from save_deploy.model.save import SaveModel
from save_deploy.systems import comes_with_sam

FORMAT = "save-deploy"
FORMAT_VERSION = "1"


def save_checkpoint(
    path: Path,
    model: SaveModel,
    *,
    kind: str = "full",
    dtype: torch.dtype | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write atomically. dtype converts the weights (float16 halves the file); notes are JSON."""
    system, depth = model.config.system, model.config.depth
    state = {
        k: v
        for k, v in model.state_dict().items()
        if kind == "full" or not comes_with_sam(k, system, depth)
    }
    tensors = {k: v.detach().to(dtype or v.dtype).contiguous() for k, v in state.items()}
    # how padding is computed is the run's choice, not the checkpoint's: both forms are equal
    config = model.config.replace(window_pad="materialise")
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": config.to_json(),
        "notes": json.dumps(notes or {}, sort_keys=True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, str(partial), metadata=metadata)
    os.chmod(partial, 0o644)  # safetensors writes 0600, unreadable for other users
    os.replace(partial, path)


def read_native(path: Path) -> tuple[dict[str, Tensor], SaveConfig, str]:
    """-> float32 tensors by key, the configuration, and the kind (full or adapter)."""
    with _opened(path) as (file, metadata):
        state = {key: file.get_tensor(key).float() for key in file.keys()}
    return state, SaveConfig.from_json(metadata["config"]), metadata["kind"]


def read_header(path: Path) -> tuple[SaveConfig, str]:
    """-> the configuration and the kind, without reading a weight. Raises CheckpointError."""
    with _opened(path) as (_, metadata):
        return SaveConfig.from_json(metadata["config"]), metadata["kind"]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file and its checked header."""
    if not path.is_file():
        raise CheckpointError(
            "checkpoint not found",
            got=str(path),
            expected="a .safetensors file",
            hint="save-export without a path exports the built-in checkpoint",
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            _check_header(path, metadata)
            yield file, metadata
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            "checkpoint cannot be read",
            got=f"{path}: {error}",
            expected="a complete safetensors file",
            hint="copy it again: it looks truncated or is not a safetensors file",
        ) from error


def read_notes(path: Path) -> dict[str, Any]:
    """What the training run wrote into the header (data, steps, scores)."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    notes: dict[str, Any] = json.loads(metadata.get("notes", "{}"))
    return notes


def _check_header(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            "not a save-deploy checkpoint",
            got=f"{path} without a configuration in its header",
            expected="a file written by save-train",
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            "checkpoint of another format version",
            got=metadata.get("format_version", "none"),
            expected=FORMAT_VERSION,
            hint="update save-deploy",
        )
