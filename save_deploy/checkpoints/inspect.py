"""Summary of a weight file from names, shapes and header, without reading weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from save_deploy.checkpoints.fit import meta_state
from save_deploy.checkpoints.foreign import Layout, identify, shapes_of
from save_deploy.checkpoints.native import DTYPES, read_shapes
from save_deploy.checkpoints.weights import WeightFile, is_ours, open_stored, open_weights
from save_deploy.config import PRESETS, RESOLUTIONS, SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.systems import SYSTEMS, group_of
from save_deploy.weight_files import open_safetensors, read_metadata, read_notes

_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SHOWN = 5
# fields that other fields determine
_DERIVED = ("name", "res", "system")


@dataclass(frozen=True)
class Part:
    """Tensors of one group (systems.group_of), or `unknown`."""

    name: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    trained: bool  # True when the file's system trains it


@dataclass(frozen=True)
class Inspection:
    """Summary of one file. `missing` and `unused` are tensor names, `dropped` are entries."""

    path: str
    size_bytes: int
    layout: str
    system: str | None
    backbone: str | None
    res: int | None
    parts: tuple[Part, ...]
    format_version: str | None = None  # of our own files
    kind: str | None = None  # full or adapter
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # non-default switches
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)  # notes of the training run
    remarks: tuple[str, ...] = ()  # what loading changes or cannot express, wrong shapes
    dropped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    next: str = ""

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "parameters": self.parameters}


def inspect_checkpoint(path: Path) -> Inspection:
    """Summarize a file of any layout. Raises CheckpointError when it cannot be opened."""
    if is_ours(path):
        return _inspect_ours(path)
    return _inspect_foreign(open_weights(path, shapes_only=True))


def _inspect_ours(path: Path) -> Inspection:
    with open_safetensors(path) as (file, metadata):
        tensors = read_shapes(file)
    config, kind = read_metadata(metadata)
    wanted = meta_state(config, kind).keys()
    return Inspection(
        path=str(path),
        size_bytes=path.stat().st_size,
        layout=f"save-deploy ({kind})",
        system=SYSTEMS[config.system].title,
        backbone=config.name,
        res=config.res,
        parts=_parts(tensors.items(), config.system, config.depth),
        format_version=metadata.string("format_version"),
        kind=kind,
        config=switches(config),
        notes=read_notes(metadata),
        unused=tuple(k for k in tensors if k not in wanted),
        missing=tuple(sorted(wanted - tensors.keys())),
        next=f"save-export {path} --res {_res(config.res)}"
        + (" --sam sam_vit_*.pth" if kind == "adapter" else ""),
    )


def _inspect_foreign(file: WeightFile) -> Inspection:
    path, tensors = file.path, file.tensors
    layout = identify(shapes_of(tensors))
    if layout is None:
        stored = tuple(open_stored(path, shapes_only=True).tensors)  # names as a map has them
        first = ", ".join(stored[:_SHOWN])
        return Inspection(
            path=str(path),
            size_bytes=path.stat().st_size,
            layout=f"unknown ({file.around}): {first}",
            system=None,
            backbone=None,
            res=None,
            parts=_parts(((f"?{k}", t) for k, t in tensors.items()), None, 0),
            dropped=file.dropped,
            unused=stored,
            next=f"save-deploy checkpoint convert {path} --map names.toml -o ours.safetensors   "
            "(docs/checkpoints.md)",
        )
    table = layout.table
    named = (
        (layout.names.get(k, f"?{k}"), t) for k, t in tensors.items() if k not in layout.left_out
    )
    return Inspection(
        path=str(path),
        size_bytes=path.stat().st_size,
        layout=f"{table.title} ({file.around})",
        system=SYSTEMS[table.system].title if table.system else None,
        backbone=layout.backbone or (f"{layout.width} x {layout.depth}" if layout.width else None),
        res=layout.res,
        parts=_parts(named, table.system, layout.depth or 0),
        config=_foreign_switches(layout),
        remarks=(*table.notes, *layout.misshapen[:_SHOWN]),
        dropped=(*file.dropped, *layout.left_out),
        unused=layout.unmatched,
        missing=layout.missing,
        next=_next(path, layout),
    )


def switches(config: SaveConfig) -> dict[str, Any]:
    """Return the fields in which a configuration differs from its preset; SAVE(**) restores it."""
    sizes = PRESETS.get(config.name, {})
    defaults = {
        f.name: sizes.get(f.name, f.default)
        for f in dataclasses.fields(config)
        if f.name not in _DERIVED
    }
    return {
        k: v for k, v in dataclasses.asdict(config).items() if k in defaults and v != defaults[k]
    }


def _foreign_switches(layout: Layout) -> dict[str, Any]:
    if layout.table.system is None or layout.backbone is None:
        return {}
    return switches(SaveConfig.of_system(layout.table.system, layout.backbone))


def _parts(
    tensors: Iterable[tuple[str, Tensor]], system: str | None, depth: int
) -> tuple[Part, ...]:
    """Group tensors by part; names that are not ours start with `?`."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        groups.setdefault(_group(name, depth), []).append(tensor)
    trains = SYSTEMS[system].trains if system else ()
    return tuple(
        Part(
            name=group,
            tensors=len(found),
            parameters=sum(t.numel() for t in found),
            bytes=sum(t.nbytes for t in found),
            dtypes=tuple(sorted({_TYPE_NAMES.get(t.dtype, str(t.dtype)) for t in found})),
            trained=group in trains,
        )
        for group, found in groups.items()
    )


def _group(name: str, depth: int) -> str:
    try:
        return group_of(name, depth)
    except SaveDeployError:
        return "unknown"


def _res(res: int | None) -> int:
    """Return the export resolution: the file's if supported, else 256."""
    return res if res in RESOLUTIONS else 256


def _next(path: Path, layout: Layout) -> str:
    """Return a command that uses the file, "" when there is none."""
    if layout.name == "vggish":
        return f"save-train --sam sam_vit_b_01ec64.pth --vggish {path}"
    if layout.unmatched or layout.misshapen or layout.backbone is None:
        return ""
    if layout.table.system is None:
        return f"save-train --sam {path}"
    if layout.missing_groups == ("audio_encoder",):
        return f"save-deploy checkpoint convert {path} OUT.safetensors --vggish vggish-10086976.pth"
    return f"save-export {path} --res {_res(layout.res)}" if layout.complete else ""
