"""Loading of a checkpoint as SaveModel; every tensor that does not fit is an error."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from save_deploy.checkpoints.fit import check_fit, position_tables
from save_deploy.checkpoints.foreign import (
    identify,
    read_sam,
    read_vggish,
    refuse_unmatched,
    shapes_of,
    to_save,
)
from save_deploy.checkpoints.native import read_native, sam_fingerprint
from save_deploy.checkpoints.weights import is_ours, open_weights
from save_deploy.config import SaveConfig, check_resolution
from save_deploy.errors import BackendError, CheckpointError
from save_deploy.model.save import PIXEL_MEAN, PIXEL_STD, SaveModel
from save_deploy.systems import SYSTEMS, comes_with_sam
from save_deploy.systems import system as check_system
from save_deploy.weight_files import open_safetensors, read_notes, without_sam

_SHOWN = 8
# layout of a part of a model -> message, command to run
_ALONE = {
    "sam": (
        "this is SAM without SAVE's trained parts",
        "save-train --sam {path}, then save-export runs/save/best.safetensors --sam {path}   "
        "(docs/checkpoints.md)",
    ),
    "sam_med2d": (
        "this is SAM-Med2D, which has image adapters but no audio modules",
        "save-train --sam {path}",
    ),
    "vggish": (
        "this is VGGish, an audio encoder without image modules",
        "save-train --sam sam_vit_b_01ec64.pth --vggish {path}",
    ),
}


def builtin_path() -> Path:
    """Return the built-in checkpoint, vit_t at 256 px, described in MODEL_CARD.md beside it.

    A clone has it in save_deploy/assets. For wheels it is in the package save-deploy-checkpoint,
    because running a bundle needs no weights. Raises BackendError when neither has it.
    """
    package = importlib.util.find_spec("save_deploy_checkpoint")
    folders = [Path(__file__).parents[1] / "assets"]
    folders += map(Path, (package and package.submodule_search_locations) or ())
    for path in (folder / "save_vit_t_256.safetensors" for folder in folders):
        if path.is_file():
            return path
    raise BackendError(
        "the built-in checkpoint is not installed",
        got="no package save-deploy-checkpoint",
        expected="that package, or a checkpoint of your own",
        hint="pip install ./save_deploy/assets   (in a clone of the repository)",
    )


def load_model(
    path: Path | None = None,
    *,
    res: int | None = None,
    sam: Path | None = None,
    vggish: Path | None = None,
    system: str | None = None,
) -> SaveModel:
    """Load a checkpoint as an eager model in eval mode.

    path: our safetensors (full or adapter-only), a complete SAMA-AVS or GAVS file, or None for the
        built-in checkpoint. The layout is detected from the content.
    res: resolution, default as trained. Position tables are resized.
    sam: SAM's weights, required by an adapter-only file.
    vggish: VGGish weights, for a GAVS file without audio encoder.
    system: required system; a checkpoint of another one raises CheckpointError.
    Prints to stderr what is unwrapped and left out of a foreign file. Raises CheckpointError.
    """
    path = path or builtin_path()
    if system is not None:
        check_system(system)
    if not is_ours(path):
        _refuse_extra("SAM base", "--sam", sam)
        state, config = _read_foreign(path, res=res, vggish=vggish, system=system)
    else:
        _refuse_extra("VGGish", "--vggish", vggish)
        state, config, kind = read_native(path)
        if kind == "adapter":
            state = over_sam(state, config, sam, path)
        else:
            _refuse_extra("SAM base", "--sam", sam)
    if system is not None and config.system != system:
        raise CheckpointError(
            "checkpoint of another system",
            got=f"{SYSTEMS[config.system].title} in {path}",
            expected=SYSTEMS[system].title,
        )
    if res is not None:
        check_resolution(res)
        config = config.replace(res=res)
    return model_from_state(config, state, source=str(path))


def model_from_state(config: SaveConfig, state: dict[str, Tensor], *, source: str) -> SaveModel:
    """Build the float32 model from these tensors; those in float32 are not copied.

    Position tables are resized.

    Raises CheckpointError for unmatched keys, wrong shapes and NaN or infinite values.
    """
    with torch.device("meta"):
        model = SaveModel(config)
    model.pixel_mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
    model.pixel_std = torch.tensor(PIXEL_STD).view(3, 1, 1)
    check_fit(config, model.state_dict(), state, source=source)
    state = {k: v.float() for k, v in state.items()}
    broken = [k for k, v in state.items() if not _all_finite(v)]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors contain NaN or infinite values",
            got="; ".join(broken[:_SHOWN]),
            expected="finite weights",
            hint="export an earlier checkpoint of the training run",
        )
    model.load_state_dict(resize_positions(state, config), assign=True)
    model.requires_grad_(False)
    return model.eval()


def _all_finite(values: Tensor) -> bool:
    """Return False for NaN and infinite values. Of gigabytes, one sum is read faster than isfinite."""
    return bool(values.sum().isfinite() or values.isfinite().all())  # finite values can overflow


def over_sam(
    state: dict[str, Tensor], config: SaveConfig, sam: Path | None, path: Path
) -> dict[str, Tensor]:
    """Return the adapter-only tensors of the file `path`, merged with the SAM they were trained on.

    Raises CheckpointError without a SAM file of the right size, and for another SAM of this size
    where the file says on which one it was trained.
    """
    if sam is None:
        raise without_sam(path, config)
    if not os.path.isfile(sam):
        raise CheckpointError(
            "SAM checkpoint not found", got=str(sam), expected="SAM's official weights"
        )
    base, preset = read_sam(sam)
    if preset != config.name:
        raise CheckpointError(
            "SAM base of another size", got=f"{preset} in {sam}", expected=config.name
        )
    frozen = {k: v for k, v in base.items() if comes_with_sam(k, config.system, config.depth)}
    with open_safetensors(path) as (_, header):
        trained_on = read_notes(header).get("sam")
    if trained_on is not None and trained_on != (found := sam_fingerprint(base, config)):
        raise CheckpointError(
            "another SAM than the one these weights were trained on",
            got=f"{sam} (weights {found})",
            expected=f"the --sam of the training of {path.name} (weights {trained_on})",
            hint="give the file that save-train was given; a fine-tuned SAM is another one",
        )
    return {**frozen, **state}


def _refuse_extra(what: str, option: str, given: Path | None) -> None:
    """Raise CheckpointError when a file is given that the checkpoint does not need."""
    if given is not None:
        raise CheckpointError(
            f"a {what} was given but the checkpoint is complete",
            got=f"{option} {given}",
            expected="an adapter-only file" if option == "--sam" else "a GAVS file",
        )


def _read_foreign(
    path: Path, *, res: int | None, vggish: Path | None, system: str | None
) -> tuple[dict[str, Tensor], SaveConfig]:
    """Read a complete foreign system: tensors by our names, and configuration.

    The resolution is that of the file.
    """
    file = open_weights(path)
    if "train_config" in file.dropped and "optimizer" in file.dropped:
        best = path.with_name("best.safetensors")
        raise CheckpointError(
            "this is the state of a training run, to be continued, not its weights",
            got=str(path),
            expected=f"{best.name} of the run, which save-train writes beside it",
            hint=f"save-export {best}" if best.is_file() else "save-train --resume writes it",
        )
    state = file.tensors
    layout = identify(shapes_of(state))
    if layout is None:
        own = any(k.startswith(("audio_adapter.", "audio_prompt.")) for k in state)
        raise CheckpointError(
            "SAVE's tensors without their configuration" if own else "unknown checkpoint layout",
            got=f"{path} with keys such as {', '.join(sorted(state)[:3])}",
            expected="a file written by save-train, SAMA-AVS or GAVS",
            hint=f"save-deploy checkpoint convert {path} --map names.toml -o ours.safetensors   "
            "(docs/checkpoints.md)",
        )
    if layout.name in _ALONE:
        refuse_unmatched(layout)
        what, hint = _ALONE[layout.name]
        beside = f" (and in it {', '.join(file.dropped[:_SHOWN])})" if file.dropped else ""
        raise CheckpointError(
            what,
            got=f"{path}{beside}",
            expected="a file written by save-train, SAMA-AVS or GAVS",
            hint=hint.format(path=path),
        )
    config, ours = to_save(state, layout)
    file.say(layout.left_out)
    if "audio_encoder" not in layout.missing_groups:
        _refuse_extra("VGGish", "--vggish", vggish)
    elif vggish is not None:
        ours |= read_vggish(vggish)
    else:
        raise CheckpointError(
            f"{layout.table.title} without its audio encoder",
            got=f"{path} without VGGish",
            expected="VGGish's weights in addition",
            hint=f"save-deploy checkpoint convert {path} --vggish vggish-10086976.pth "
            "-o ours.safetensors",
        )
    if config.system == "sama_avs":
        # equal switches: a file with another resolution than requested is SAMA-AVS-FT
        moved = res is not None and res != config.res
        label = system if system in layout.table.systems else None
        config = config.replace(system=label or ("sama_avs_ft" if moved else "sama_avs"))
    return ours, config


def resize_abs_pos(table: Tensor, grid: int, how: str = "bilinear") -> Tensor:
    """Resize (1,g,g,C) to (1,grid,grid,C), align_corners=False, no antialiasing (SAM-Med2D's rule)."""
    if table.shape[1] == grid:
        return table
    planes = table.float().permute(0, 3, 1, 2)  # (1,C,g,g)
    resized = interpolate(planes, (grid, grid), mode=how, align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous().to(table.dtype)


def resize_rel_pos(table: Tensor, length: int) -> Tensor:
    """Resize (L,head_dim) to (length,head_dim), linear along L, as SAM's get_rel_pos does."""
    if table.shape[0] == length:
        return table
    resized = interpolate(table.float().t()[None], length, mode="linear", align_corners=False)
    return resized[0].t().contiguous().to(table.dtype)


@torch.no_grad()
def resize_positions(state: dict[str, Tensor], config: SaveConfig) -> dict[str, Tensor]:
    """Return a state that fits (check_fit) with tables for config.res. Other tensors are shared."""
    absolute, *relative = position_tables(config)
    return {
        **state,
        absolute: resize_abs_pos(state[absolute], config.grid, config.pos_interp),
        **{name: resize_rel_pos(state[name], 2 * config.grid - 1) for name in relative},
    }
