"""Conversion of other projects' tensors to ours and back: identification, gaps, extra tensors.

What our model cannot express exactly is rejected or noted, never approximated. GAVS: its adapters
are at the same places as ours (after the MLP of a block, after the MLP of a two-way layer). Its
blocks before --tune_v have adapters that are never read; they are left out. Its frames are BGR, so
the patch embedding is rewritten to give the same features for RGB. Its audio vectors are computed
outside of it, possibly by a VGGish without the last ReLU; this is noted, not corrected.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from save_deploy.checkpoints.fit import POS_EMBED, fits, meta_state
from save_deploy.checkpoints.layouts import LAYOUTS, PIXEL_BUFFERS, Rules, Table
from save_deploy.checkpoints.weights import open_weights
from save_deploy.config import PATCH, PRESETS, SaveConfig
from save_deploy.errors import CheckpointError, SaveDeployError
from save_deploy.model.save import PIXEL_MEAN, PIXEL_STD
from save_deploy.systems import LATE_BLOCKS, SYSTEMS, group_of, is_unused

_PATCH = "image_encoder.patch_embed.proj"
_SHOWN = 8
_AGAIN = "download it again, or save the model as its public code builds it"
_ADAPTER_V = "image_encoder.blocks.{i}.adapter_v.{j}.{p}"
PLACES = {
    "i": "(?P<i>[0-9]{1,4})", "j": "(?P<j>[0-9]{1,4})", "p": "(?P<p>weight|bias)", "a": "(?P<a>[hw])",
    "rest": "(?P<rest>.+)",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Identified layout of a file, its size, and the mapping of its names to ours."""

    name: str  # a key of LAYOUTS
    backbone: str | None  # preset; None for an unknown size and for VGGish
    width: int | None
    depth: int | None
    res: int | None  # resolution of the position table in px
    names: dict[str, str]  # their name -> our name
    unmatched: tuple[str, ...]  # their names that the layout does not have
    missing: tuple[str, ...]  # our names that the layout has and the file does not
    left_out: tuple[str, ...]  # their names that our model does not use
    misshapen: tuple[str, ...]  # their names with the shapes that do not fit the backbone

    @property
    def table(self) -> Table:
        return LAYOUTS[self.name]

    @property
    def missing_groups(self) -> tuple[str, ...]:
        """Groups that lack tensors.

        ("audio_encoder",) for a GAVS file as its code saves it.
        """
        return tuple(dict.fromkeys(group_of(name, self.depth or 0) for name in self.missing))

    @property
    def complete(self) -> bool:
        """True when the file alone gives a complete model."""
        known = self.table.system is not None and self.backbone is not None
        return known and not (self.missing or self.unmatched or self.misshapen)


def read_sam(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read SAM or SAM-Med2D: tensors by our names, and the preset (vit_b, vit_l or vit_h).

    SAM-Med2D includes image adapters (image_encoder.blocks.i.adapter.*) and 256 px position tables.
    """
    state, layout = _read_half(path, ("sam", "sam_med2d"), "SAM", "SAM's official weights")
    if layout.backbone is None:
        raise unknown_size(layout)
    return to_ours(state, layout), layout.backbone


def read_vggish(path: Path) -> dict[str, Tensor]:
    """Read vggish-10086976.pth: tensors under our prefix `audio_encoder.`."""
    state, layout = _read_half(path, ("vggish",), "VGGish", "vggish-10086976.pth")
    return to_ours(state, layout)


def identify(shapes: Mapping[str, Sequence[int]]) -> Layout | None:
    """Return the layout of names and shapes without prefixes, or None when it is unknown."""
    name = next((n for n, table in LAYOUTS.items() if _has_mark(shapes, table)), None)
    if name is None or any(k.startswith(("audio_adapter.", "audio_prompt.")) for k in shapes):
        return None  # our own tensors without their configuration
    table = LAYOUTS[name]
    names, unmatched = rename_all(shapes, table.rules)
    patch, pos = shapes.get(f"{_PATCH}.weight"), shapes.get(POS_EMBED)
    width, depth = (patch[0] if patch else None), depth_of(shapes)
    backbone = next(
        (n for n, p in PRESETS.items() if (p["embed_dim"], p["depth"]) == (width, depth)), None
    )
    missing: list[str] = []
    misshapen: list[str] = []
    if backbone is not None or name == "vggish":
        config = SaveConfig.of_system(table.like, backbone or "vit_b")
        # GAVS's files have adapters in its early blocks, too
        wanted = meta_state(config.replace(image_adapter_start=0))
        early = _adapters_before(config.image_adapter_start)
        unmatched += [theirs for theirs, ours in names.items() if ours not in wanted]
        names = {theirs: ours for theirs, ours in names.items() if ours in wanted}
        back, present = _reverse(table.rules), set(names.values())
        missing = [
            k
            for k in wanted
            if k not in present and not k.startswith(early) and rename(k, back) is not None
        ]
        if backbone is not None:  # the size of a VGGish alone is not known
            misshapen = [
                f"{theirs} {tuple(shapes[theirs])}, expected {tuple(wanted[ours].shape)}"
                for theirs, ours in names.items()
                if not fits(ours, shapes[theirs], wanted[ours].shape, config)
            ]
    return Layout(
        name=name,
        backbone=backbone,
        width=width,
        depth=depth,
        res=pos[1] * PATCH if pos and len(pos) == 4 else None,
        names=names,
        unmatched=tuple(k for k in unmatched if k not in (*PIXEL_BUFFERS, *table.drops)),
        missing=tuple(missing),
        left_out=tuple(k for k in unmatched if k in table.drops),
        misshapen=tuple(misshapen),
    )


def depth_of(names: Iterable[str]) -> int | None:
    """Return the number of blocks of an image encoder (largest block index + 1), or None."""
    numbers = (m[1] for n in names if (m := re.match(r"image_encoder\.blocks\.([0-9]{1,4})\.", n)))
    return 1 + max(map(int, numbers), default=-1) or None


def _has_mark(names: Collection[str], table: Table) -> bool:
    """Return True when a name contains a mark of the table and is a valid name of this layout."""
    marked = (name for name in names if any(mark in name for mark in table.marks))
    known = any(rename(name, table.rules) is not None for name in marked)
    return known and all(name in names for name in table.requires)


def refuse_unmatched(layout: Layout) -> None:
    """Raise CheckpointError when the file has tensors that its layout does not have."""
    if layout.unmatched:
        raise CheckpointError(
            f"{len(layout.unmatched)} tensors are not part of a {layout.table.title} checkpoint",
            got="; ".join(layout.unmatched[:_SHOWN]),
            expected=f"the {len(layout.names)} others only",
            hint="save the model as its public code builds it, or write a name map: "
            "save-deploy checkpoint convert --map (docs/checkpoints.md)",
        )


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor."""
    return {key: tuple(value.shape) for key, value in state.items()}


def to_ours(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return float32 tensors under our names, with unchanged values.

    Raises CheckpointError for names and shapes that the layout does not have.
    """
    refuse_unmatched(layout)
    if layout.misshapen:
        raise CheckpointError(
            f"{len(layout.misshapen)} tensors of {layout.table.title} have another shape",
            got="; ".join(layout.misshapen[:_SHOWN]),
            expected=f"the shapes of {layout.table.title} on {layout.backbone}",
            hint=_AGAIN,
        )
    for key, values in zip(PIXEL_BUFFERS, (PIXEL_MEAN, PIXEL_STD), strict=True):
        if key in state:
            _check_pixels(key, state[key].float().flatten(), torch.tensor(values))
    return {ours: state[theirs].float() for theirs, ours in layout.names.items()}


def to_save(state: Mapping[str, Tensor], layout: Layout) -> tuple[SaveConfig, dict[str, Tensor]]:
    """Return configuration at the file's resolution and tensors of an equal SaveModel.

    Tensors that the project does not have, and that a single mask without points never reads (point
    embeddings, mask_downscaling), are zeros. Raises CheckpointError for SAM, SAM-Med2D and VGGish,
    which lack audio or image modules, and for unknown sizes.
    """
    system, backbone = layout.table.system, layout.backbone
    if system is None:
        raise CheckpointError(
            f"a {layout.table.title} file alone is not an audio-visual model",
            got=f"no {', '.join(layout.missing_groups) or 'audio modules'}",
            expected="SAVE, SAMA-AVS or GAVS",
        )
    if backbone is None:
        raise unknown_size(layout)
    ours = to_ours(state, layout)
    # VGGish may be given as a file of its own
    if missing := [name for name in layout.missing if not name.startswith("audio_encoder.")]:
        raise _incomplete(layout, missing, f"a {layout.table.title} file", SYSTEMS[system].title)
    assert layout.res is not None  # the position table is there and has its shape
    try:
        config = SaveConfig.of_system(system, backbone).replace(res=layout.res)
    except SaveDeployError as error:  # an odd number of tokens
        got = f"{POS_EMBED} of {layout.res} px"
        raise CheckpointError(error.what, got=got, expected=error.expected, hint=_AGAIN) from None
    if layout.name == "gavs":
        start = _first_tuned(state, config.depth)
        config = config.replace(image_adapter_start=start)
        early = _adapters_before(start)
        ours = swap_colors({k: v for k, v in ours.items() if not k.startswith(early)})
    filled = {
        key: torch.zeros(like.shape)
        for key, like in meta_state(config).items()
        if key not in ours and is_unused(key) and key.startswith(layout.table.leaves_out)
    }
    return config, {**ours, **filled}


def from_save(state: Mapping[str, Tensor], config: SaveConfig, name: str) -> dict[str, Tensor]:
    """Return our tensors in another project's layout, without its wrapper entry.

    SAM-Med2D gets the part that it has. GAVS's early blocks get zero adapters, which have no
    effect. Raises CheckpointError when that project's code would compute another function.
    """
    table = LAYOUTS.get(name)
    if table is None or not table.systems:
        writable = [n for n, t in LAYOUTS.items() if t.systems]
        raise CheckpointError("not a layout to write", got=name, expected=", ".join(writable))
    _check_switches(config, table)
    kept = {k: v for k, v in state.items() if not k.startswith(table.leaves_out)}
    if name == "gavs":
        kept = swap_colors(kept)
    names, unmatched = rename_all(kept, _reverse(table.rules))
    if unmatched:
        raise CheckpointError(
            f"{len(unmatched)} tensors do not exist in a {table.title} file",
            got="; ".join(unmatched[:8]),
            expected=f"{' or '.join(table.systems)} as its public code builds it",
        )
    theirs = {names[key]: value for key, value in kept.items()}
    if name == "gavs":
        theirs |= _idle_adapters(config)
    return {table.prefix + key: value for key, value in theirs.items()}


def swap_colors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the patch embedding between BGR and RGB input, both normalized in RGB order.

    Exact up to rounding, because every patch is inside the image: weights are permuted and scaled,
    and the difference of the means is added to the bias. Applied twice it returns the original.
    """
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (PIXEL_MEAN, PIXEL_STD))
    weight, bias = state[f"{_PATCH}.weight"].double(), state[f"{_PATCH}.bias"].double()
    scale, shift = std.flip(0) / std, (mean.flip(0) - mean) / std  # per channel of the old weight
    swapped = (weight * scale.view(1, 3, 1, 1)).flip(1)  # (C,3,16,16)
    moved = bias + (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
    return {**state, f"{_PATCH}.weight": swapped.float(), f"{_PATCH}.bias": moved.float()}


def _check_pixels(key: str, found: Tensor, wanted: Tensor) -> None:
    """Raise CheckpointError for other values of a buffer than SAM's."""
    if found.shape != wanted.shape or not torch.allclose(found, wanted):
        some = [round(v, 3) for v in found[:_SHOWN].tolist()]
        raise CheckpointError(
            f"another {key} than SAM's",
            got=f"{len(found)} values: {some}",
            expected=str([round(v, 3) for v in wanted.tolist()]),
            hint="export a model that was trained on frames normalized as SAM's are",
        )


def _incomplete(
    layout: Layout, missing: Sequence[str], source: str, expected: str
) -> CheckpointError:
    return CheckpointError(
        f"{len(missing)} tensors of {layout.table.title} are missing",
        got=f"{source} without {'; '.join(missing[:_SHOWN])}",
        expected=expected,
        hint=_AGAIN,
    )


def unknown_size(layout: Layout) -> CheckpointError:
    """Return the error for an image encoder of unknown size."""
    return CheckpointError(
        f"{layout.table.title} checkpoint of unknown size",
        got=f"width {layout.width}, depth {layout.depth}",
        expected=", ".join(f"{n} {p['embed_dim']}x{p['depth']}" for n, p in PRESETS.items()),
        hint=_AGAIN,
    )


def rename(key: str, rules: Rules) -> str | None:
    """Return the name after the first rule that matches, or None."""
    for pattern, target in rules:
        match = _compiled(pattern).fullmatch(key)
        if match is not None:
            return target.format(**match.groupdict())
    return None


def rename_all(keys: Iterable[str], rules: Rules) -> tuple[dict[str, str], list[str]]:
    """Return key -> new name, and the keys that no rule matches."""
    renamed = {key: rename(key, rules) for key in keys}
    return {k: v for k, v in renamed.items() if v is not None}, [
        k for k, v in renamed.items() if v is None
    ]


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    literal = re.split(r"\{(\w+)\}", pattern)  # text, place, text, place, ...
    parts = [PLACES[p] if i % 2 else re.escape(p) for i, p in enumerate(literal)]
    return re.compile("".join(parts))


def _reverse(rules: Rules) -> Rules:
    return tuple((ours, theirs) for theirs, ours in rules)


def _adapters_before(start: int) -> tuple[str, ...]:
    """Return how our names of GAVS's image adapters in the blocks before `start` begin."""
    return tuple(f"image_encoder.blocks.{i}.mlp.adapter." for i in range(start))


def _first_tuned(state: Mapping[str, Tensor], depth: int) -> int:
    """Return GAVS's --tune_v, the first tuned block, which the file does not store.

    It is the first of the last three blocks, as in its scripts, or the first earlier block whose
    adapter exceeds the range of PyTorch's initialization.
    """
    for i in range(depth - LATE_BLOCKS):
        for j in (0, 2):
            weight = state.get(_ADAPTER_V.format(i=i, j=j, p="weight"))
            if weight is not None and weight.abs().max() > 1.0001 * weight.shape[1] ** -0.5:
                return i
    return depth - LATE_BLOCKS


def _idle_adapters(config: SaveConfig) -> dict[str, Tensor]:
    """Return zero adapters for the blocks without one; GAVS's code builds them in all blocks."""
    c, h = config.embed_dim, config.bottleneck_dim
    shapes = {(0, "weight"): (h, c), (0, "bias"): (h,), (2, "weight"): (c, h), (2, "bias"): (c,)}
    return {
        _ADAPTER_V.format(i=i, j=j, p=p): torch.zeros(shape)
        for i in range(config.image_adapter_start)
        for (j, p), shape in shapes.items()
    }


def _check_switches(config: SaveConfig, table: Table) -> None:
    """Raise CheckpointError for a model that the other project's code would compute differently."""
    if config.system not in table.systems:
        raise CheckpointError(
            f"this system cannot be written as a {table.title} file",
            got=SYSTEMS[config.system].title,
            expected=" or ".join(SYSTEMS[s].title for s in table.systems),
        )
    switches = SYSTEMS[table.system].switches if table.system else {}
    wanted = {**switches, **table.needs}
    differs = {k: v for k, v in wanted.items() if getattr(config, k) != v}
    if differs:
        raise CheckpointError(
            f"{table.title}'s code would compute another function of these weights",
            got=", ".join(f"{k}={getattr(config, k)}" for k in differs),
            expected=", ".join(f"{k}={v}" for k, v in differs.items()),
        )


def _read_half(
    path: Path, wanted: tuple[str, ...], title: str, expected: str
) -> tuple[dict[str, Tensor], Layout]:
    """Read a file of one of the wanted layouts.

    Raises CheckpointError for another or incomplete one.
    """
    file = open_weights(path)
    state = file.tensors
    layout = identify(shapes_of(state))
    if layout is None or layout.name not in wanted:
        found = f"{layout.table.title}: " if layout is not None else ""
        raise CheckpointError(
            f"not a {title} checkpoint",
            got=f"{found}{path} with keys such as {', '.join(sorted(state)[:3])}",
            expected=expected,
        )
    if layout.missing:
        raise _incomplete(layout, layout.missing, str(path), expected)
    file.say(layout.left_out)
    return state, layout
