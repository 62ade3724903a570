"""Name maps for a user's own checkpoint layout, in TOML: their names = our names.

    backbone = "vit_b"                     # default: from the sizes of the mapped tensors
    [switches]
    prompt_scale = "1/N"
    [names]
    "encoder.layer{i}.qkv.{p}" = "image_encoder.blocks.{i}.attn.qkv.{p}"
    "decoder.{rest}" = "mask_decoder.{rest}"

`{i}` and `{j}` stand for a number, `{p}` for weight or bias, `{a}` for h or w, `{rest}` for
anything. The first matching line is used. Values are not transposed or cut.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from save_deploy.checkpoints.fit import POS_EMBED, fits, meta_state
from save_deploy.checkpoints.foreign import PLACES, depth_of, read_sam, read_vggish, rename
from save_deploy.checkpoints.layouts import Rules
from save_deploy.checkpoints.load import model_from_state
from save_deploy.checkpoints.weights import open_stored
from save_deploy.config import MAX_RES, PATCH, PRESETS, SaveConfig, take_switch
from save_deploy.errors import CheckpointError
from save_deploy.fields import Fields, read_toml
from save_deploy.model.save import SaveModel
from save_deploy.systems import SYSTEMS, comes_with_sam, is_unused

_CHOSEN = ("name", "res", "system")  # fields that are not in [switches]
_PLACE = re.compile(r"\{(\w*)\}")
_HINT = "names with dots need quotes; docs/checkpoints.md has an example"


@dataclass(frozen=True)
class NameMap:
    """A parsed name map: configuration of the model, and rules (their name, our name)."""

    system: str
    backbone: str | None
    res: int | None
    switches: dict[str, Any]
    rules: Rules


@dataclass(frozen=True)
class MapReport:
    """Result of applying a name map.

    mapped: number of mapped tensors.
    missing: our names that no rule gave.
    unused: their names that no rule matches.
    shapes: our names with a wrong shape.
    idle: rules that match nothing.
    filled: our names from --sam and --vggish.
    zeros: our names that are zeros, because a single mask never reads them.
    """

    mapped: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    shapes: tuple[str, ...]
    idle: tuple[str, ...]
    filled: tuple[str, ...]
    zeros: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the report as text. Names that differ only in numbers are grouped and counted."""
        parts = (
            ("given by --sam or --vggish", _grouped(self.filled)),
            ("zeros, never read", _grouped(self.zeros)),
            ("missing of ours", _grouped(self.missing)),
            ("unused of theirs", _grouped(self.unused)),
            ("of another shape", list(self.shapes)),
            ("rules that fit nothing", list(self.idle)),
        )
        told = [f"{what}: {'; '.join(names)}" for what, names in parts if names]
        return [f"mapped: {self.mapped} tensors", *told]


def read_names(path: Path) -> NameMap:
    """Read a name map. Raises CheckpointError, naming the file and the key."""
    top = read_toml(path, what="map", error=CheckpointError, hint=_HINT)
    named = top.table("names")
    rules = tuple((theirs, _ours(named, theirs)) for theirs in named.values)
    if not rules:
        raise named.error("", got="nothing", expected='"their name" = "our name"')
    table = top.table("switches", {})
    known = [f.name for f in fields_of(SaveConfig) if f.name not in _CHOSEN]
    switches = {name: take_switch(table, name) for name in known if name in table}
    table.done(known)
    found = NameMap(
        system=top.string("system", SYSTEMS, "save"),
        backbone=top.string("backbone", PRESETS) if "backbone" in top else None,
        res=top.integer("res", low=32, high=MAX_RES) if "res" in top else None,
        switches=switches,
        rules=rules,
    )
    top.done(("system", "backbone", "res"))
    return found


def map_file(
    path: Path, names: NameMap, *, sam: Path | None = None, vggish: Path | None = None
) -> tuple[SaveModel, MapReport]:
    """Load a file of any layout through a name map; return the model and a report.

    sam, vggish: files for the frozen parts that the map leaves out.
    Missing parameters that a single mask never reads are zeros. Raises CheckpointError with the
    whole report for an incomplete model.
    """
    stored = open_stored(path).tensors
    ours, unused, used = _apply(stored, names.rules)
    config = _config(ours, names)
    wanted = meta_state(config)
    mapped = {
        k: v.float()
        for k, v in ours.items()
        if k in wanted and fits(k, v.shape, wanted[k].shape, config)
    }
    filled = _filled(wanted.keys() - ours.keys(), config, sam, vggish)
    absent = [k for k in wanted if k not in ours and k not in filled]
    zeros = {k: torch.zeros(wanted[k].shape) for k in absent if is_unused(k)}
    report = MapReport(
        mapped=len(mapped),
        missing=tuple(k for k in absent if k not in zeros),
        unused=tuple(unused),
        shapes=tuple(
            f"{k} {tuple(v.shape)}, expected {tuple(wanted[k].shape)}"
            if k in wanted
            else f"{k}, no tensor of {config.name} as {config.system}"
            for k, v in ours.items()
            if k not in mapped
        ),
        idle=tuple(f"{theirs} = {our}" for theirs, our in names.rules if theirs not in used),
        filled=tuple(filled),
        zeros=tuple(zeros),
    )
    if report.missing or report.shapes:
        raise CheckpointError(
            "the map does not give a complete model",
            got="\n".join(report.lines()),
            expected=f"every tensor of {SYSTEMS[config.system].title} on {config.name}",
            hint="add lines to the map; --sam and --vggish give the frozen parts",
        )
    return model_from_state(config, {**mapped, **filled, **zeros}, source=str(path)), report


def _ours(named: Fields, theirs: str) -> str:
    """Return the right side of a rule after checking that both sides have the same placeholders."""
    ours = named.string(theirs)
    left, right = (Counter(_PLACE.findall(side)) for side in (theirs, ours))
    unknown = [place for place in left if place not in PLACES]
    if unknown:
        raise named.error(theirs, got=f"{{{unknown[0]}}}", expected=_braced(PLACES))
    strays = [side for side in (theirs, ours) if re.search("[{}]", _PLACE.sub("", side))]
    if left != right or strays or any(n > 1 for n in left.values()):
        raise named.error(theirs, got=ours, expected=f"each of {_braced(left) or 'no place'} once")
    return ours


def _braced(places: Iterable[str]) -> str:
    return ", ".join(f"{{{place}}}" for place in places)


def _apply(
    stored: Mapping[str, Tensor], rules: Rules
) -> tuple[dict[str, Tensor], list[str], set[str]]:
    """Return the tensors by our names, their unmatched names, and the rules that matched."""
    ours: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    unused: list[str] = []
    used: set[str] = set()
    for name, value in stored.items():
        rule = next((r for r in rules if rename(name, (r,)) is not None), None)
        our = rename(name, (rule,)) if rule is not None else None
        if rule is None or our is None or not value.is_floating_point():
            unused.append(name)
            continue
        if our in ours:
            raise CheckpointError(
                "two of their tensors map to the same name",
                got=f"{source[our]} and {name} = {our}",
                expected="one",
            )
        used.add(rule[0])
        ours[our], source[our] = value, name
    return ours, unused, used


def _config(ours: Mapping[str, Tensor], names: NameMap) -> SaveConfig:
    """Return the configuration of the map, with sizes from the tensors where the map has none."""
    depth = depth_of(ours) or 0
    patch = ours.get("image_encoder.patch_embed.proj.weight")
    size = (patch.shape[0] if patch is not None and patch.ndim else 0, depth)
    by_size = {(p["embed_dim"], p["depth"]): n for n, p in PRESETS.items()}
    backbone = names.backbone or by_size.get(size)
    if backbone is None:
        raise CheckpointError(
            "the map gives an image encoder of unknown size",
            got=f"width {size[0]}, depth {size[1]}",
            expected=", ".join(f"{n} {w}x{d}" for (w, d), n in by_size.items()),
            hint="map image_encoder.patch_embed and image_encoder.blocks, or set backbone in the map",
        )
    config = SaveConfig.of_system(names.system, backbone, **names.switches)
    pos, like = ours.get(POS_EMBED), (1, config.grid, config.grid, config.embed_dim)
    if names.res is None and pos is not None and fits(POS_EMBED, pos.shape, like, config):
        return config.replace(res=pos.shape[1] * PATCH)
    return config.replace(res=names.res or config.res)


def _filled(
    absent: Iterable[str], config: SaveConfig, sam: Path | None, vggish: Path | None
) -> dict[str, Tensor]:
    """Return our tensors that are absent in the map and exist in the other files."""
    base: dict[str, Tensor] = {}
    if sam is not None:
        base, preset = read_sam(sam)
        if preset != config.name:
            raise CheckpointError(
                "SAM base of another size", got=f"{preset} in {sam}", expected=config.name
            )
    sound = read_vggish(vggish) if vggish is not None else {}
    keep = {k: v for k, v in base.items() if comes_with_sam(k, config.system, config.depth)}
    given = {**keep, **sound}
    return {k: given[k] for k in sorted(absent) if k in given}


def _grouped(names: Iterable[str]) -> list[str]:
    """Group names that differ in numbers: blocks.{i}.norm1.weight (12)."""
    groups = Counter(re.sub(r"(?<![^.])\d+(?![^.])", "{i}", name) for name in names)
    return [f"{name} ({n})" if n > 1 else name for name, n in groups.items()]
