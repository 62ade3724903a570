"""Search for the checkpoint that a bundle was made from, by hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from save_deploy.bundle import Manifest, sha256_of
from save_deploy.checkpoints import builtin_path as builtin_path
from save_deploy.config import SaveConfig
from save_deploy.errors import BundleError, CheckpointError
from save_deploy.model.save import SaveModel
from save_deploy.runtime.compare.entries import EagerSource


def find_source(
    bundle: Path, manifest: Manifest, *, checkpoints: Sequence[Path] = (), sams: Sequence[Path] = ()
) -> EagerSource:
    """Return the files that a bundle was made from, among these candidates.

    checkpoints: () means the built-in one.
    Files are compared by sha256, because a comparison with other weights is meaningless. Raises
    CheckpointError for a missing file, and BundleError when none matches.
    """
    for path in (*checkpoints, *sams):
        if not path.is_file():
            raise CheckpointError("checkpoint not found", got=str(path), expected="a file")
    recorded, *base = manifest.source["files"]
    checkpoint = _matching(bundle, recorded, list(checkpoints) or [builtin_path()], "checkpoint")
    sam = _matching(bundle, base[0], list(sams), "SAM base") if base else None
    spec = manifest.model.inputs[0]
    return EagerSource(
        checkpoint=checkpoint,
        sam=sam,
        res=manifest.config.res,
        batch=spec.shape[0],
        n_bytes=weight_bytes(manifest.config),
    )


def weight_bytes(config: SaveConfig) -> int:
    """Return the size of the eager model's float32 weights in memory."""
    with torch.device("meta"):
        return sum(4 * p.numel() for p in SaveModel(config).parameters())


def _matching(bundle: Path, recorded: dict[str, object], files: list[Path], what: str) -> Path:
    for path in files:
        if path.stat().st_size == recorded["size"] and sha256_of(path) == recorded["sha256"]:
            return path
    option = "--checkpoint" if what == "checkpoint" else "--sam"
    raise BundleError(
        f"the bundle was made of another {what}",
        got=", ".join(map(str, files)) or f"no {option}",
        expected=f"{recorded['name']} with sha256 {str(recorded['sha256'])[:12]}..., for {bundle}",
        hint=f"save-compare {bundle} {option} FILE, or --no-eager to compare bundles alone",
    )
