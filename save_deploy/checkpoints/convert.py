"""One weight file into another layout: foreign -> ours, ours -> SAMA-AVS, GAVS, SAM-Med2D."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from save_deploy.checkpoints.foreign import from_save
from save_deploy.checkpoints.layouts import LAYOUTS
from save_deploy.checkpoints.load import load_model, model_from_state, resize_positions
from save_deploy.checkpoints.mapping import MapReport, map_file, read_names
from save_deploy.checkpoints.native import save_checkpoint
from save_deploy.config import SaveConfig, check_resolution
from save_deploy.errors import CheckpointError
from save_deploy.files import new_file

OWN = "save"
_PTH_SUFFIXES = (".pth", ".pt")  # as their code names what it saves


@dataclass(frozen=True)
class Conversion:
    """What was written."""

    path: Path
    layout: str
    config: SaveConfig
    tensors: int
    left_out: tuple[str, ...]  # our tensors the layout has no place for
    mapped: MapReport | None = None  # with a map of names


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
    """Write `path` (anything load_model reads, with the same vggish, sam and res) in `layout`.

    names: a map for a file of any other layout (checkpoints/mapping.py).

    save: our safetensors, full. sama_avs, gavs, sam_med2d: a .pth as their code loads it. Written
    atomically; an existing `out` needs force. Raises CheckpointError or OutputError.
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
            state = resize_positions(model.state_dict(), config)
            model = model_from_state(config, state, source=str(path))
    state, config = model.state_dict(), model.config
    if layout == OWN:
        save_checkpoint(out, model, notes={"converted_from": path.name})
        return Conversion(out, OWN, config, len(state), (), report)
    table = LAYOUTS[layout]
    theirs = from_save(state, config, layout)
    # clones: a view would store the whole memory behind it
    plain: dict[str, Any] = {k: v.detach().clone() for k, v in theirs.items()}
    with new_file(out, what="the checkpoint", replace=force) as partial:
        torch.save({table.wrapper: plain} if table.wrapper else plain, partial)
    left_out = tuple(k for k in state if k.startswith(table.leaves_out))
    return Conversion(out, layout, config, len(theirs), left_out, report)


def _check_target(out: Path, layout: str, *, force: bool) -> None:
    writable = (OWN, *(name for name, table in LAYOUTS.items() if table.systems))
    if layout not in writable:
        raise CheckpointError("unknown layout", got=layout, expected=", ".join(writable))
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
