"""The checkpoint that a bundle was made of, found by its hash."""

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
    """The files that the bundle was made of, found among these (no checkpoint: the built-in one) by
    sha256: a comparison with other weights says nothing. Raises CheckpointError for a missing file,
    BundleError when none of them is the one."""
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
    """Bytes of the eager model's weights in memory: float32, whatever its file stores."""
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
