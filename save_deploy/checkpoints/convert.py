"""Conversion of a weight file: foreign layouts to ours, ours to SAMA-AVS, GAVS or SAM-Med2D."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from save_deploy.checkpoints.foreign import from_save
from save_deploy.checkpoints.layouts import LAYOUTS
from save_deploy.checkpoints.load import load_model, model_from_state
from save_deploy.checkpoints.mapping import MapReport, map_file, read_names
from save_deploy.checkpoints.native import save_checkpoint
from save_deploy.config import SaveConfig, check_resolution
from save_deploy.errors import CheckpointError
from save_deploy.fields import check_word
from save_deploy.files import new_file

OWN = "save"
_PTH_SUFFIXES = (".pth", ".pt")  # suffixes that the other projects use


@dataclass(frozen=True)
class Conversion:
    """The written file."""

    path: Path
    layout: str
    config: SaveConfig
    tensors: int
    left_out: tuple[str, ...]  # our tensors that the layout does not have
    mapped: MapReport | None = None  # None without a name map


def convert(
    path: Path,
    out: Path,
    *,
    layout: str = OWN,
    vggish: Path | None = None,
    sam: Path | None = None,
    res: int | None = None,
    names: Path | None = None,
    force: bool = False,
) -> Conversion:
    """Write the checkpoint `path` to `out` in another layout.

    path, vggish, sam, res: as in load_model.
    layout: save (our safetensors, full), or sama_avs, gavs, sam_med2d (a .pth file that their code
        loads).
    names: name map for a file of another layout (checkpoints/mapping.py).
    force: replace an existing `out`.
    The file is written atomically. Raises CheckpointError or OutputError.
    """
    _check_target(out, layout, force=force)
    report = None
    if names is None:
        model = load_model(path, res=res, vggish=vggish, sam=sam)
    else:
        model, report = map_file(path, read_names(names), sam=sam, vggish=vggish)
        if res is not None:
            check_resolution(res)
            config = model.config.replace(res=res)
            model = model_from_state(config, model.state_dict(), source=str(path))
    state, config = model.state_dict(), model.config
    if layout == OWN:
        save_checkpoint(out, model, notes={"converted_from": path.name})
        return Conversion(out, OWN, config, len(state), (), report)
    table = LAYOUTS[layout]
    theirs = from_save(state, config, layout)
    # clones, because torch.save stores the whole storage of a view
    plain: dict[str, Any] = {k: v.detach().clone() for k, v in theirs.items()}
    with new_file(out, what="the checkpoint", replace=force) as partial:
        torch.save({table.wrapper: plain} if table.wrapper else plain, partial)
    left_out = tuple(k for k in state if k.startswith(table.leaves_out))
    return Conversion(out, layout, config, len(theirs), left_out, report)


def _check_target(out: Path, layout: str, *, force: bool) -> None:
    """Raise CheckpointError for an unknown layout, a wrong suffix, or an existing file."""
    writable = (OWN, *(name for name, table in LAYOUTS.items() if table.systems))
    check_word("layout", layout, writable, CheckpointError)
    suffixes = (".safetensors",) if layout == OWN else _PTH_SUFFIXES
    if out.suffix not in suffixes:
        raise CheckpointError(
            "the file name does not fit the layout",
            got=str(out),
            expected=f"{' or '.join(suffixes)} for {layout}",
        )
    if out.exists() and not force:
        raise CheckpointError(
            "the output exists", got=str(out), expected="a new name", hint="add --force"
        )
