"""What is in a weight file, from names, shapes and header alone: no weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from save_deploy.checkpoints.foreign import Layout, identify
from save_deploy.checkpoints.load import PTH_SUFFIXES
from save_deploy.checkpoints.native import is_native, open_safetensors, read_metadata, read_notes
from save_deploy.checkpoints.pth import is_safetensors, open_pth
from save_deploy.config import PRESETS, RESOLUTIONS, SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.model.save import SaveModel
from save_deploy.systems import SYSTEMS, comes_with_sam, group_of

_DTYPES = {  # safetensors' names -> bytes per value
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_TORCH_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16",
                torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16",
                torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip
_SHOWN = 5
# a field that follows from another one says nothing
_DERIVED = ("name", "res", "system")


@dataclass(frozen=True)
class Part:
    """The tensors of one group (systems.group_of), or `unknown`."""

    name: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    trained: bool  # by the file's system; False: frozen, or nobody's


@dataclass(frozen=True)
class Inspection:
    """One file in words and numbers; `missing` and `unused` name tensors, `dropped` entries."""

    path: str
    size_bytes: int
    layout: str
    system: str | None
    backbone: str | None
    res: int | None
    parts: tuple[Part, ...]
    format_version: str | None = None  # of our own files
    kind: str | None = None  # full or adapter
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # switches off the default
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)  # left by training
    remarks: tuple[str, ...] = ()  # what a load changes or cannot express
    dropped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    next: str = ""

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "parameters": self.parameters}


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


def inspect_checkpoint(path: Path) -> Inspection:
    """Ours or foreign, by content. Raises CheckpointError for a file that cannot be opened."""
    if path.is_file() and (path.suffix == ".safetensors" or is_safetensors(path)):
        return _inspect_safetensors(path)
    return _inspect_pth(path)


def _inspect_safetensors(path: Path) -> Inspection:
    with open_safetensors(path) as (file, metadata):
        slices = ((key, file.get_slice(key)) for key in file.keys())
        tensors = {k: _Tensor(tuple(s.get_shape()), s.get_dtype()) for k, s in slices}
    if not is_native(metadata):
        return _foreign(path, tensors, dropped=(), wrapped="safetensors")
    config, kind = read_metadata(metadata)
    wanted = {
        key
        for key in _names(config)
        if kind == "full" or not comes_with_sam(key, config.system, config.depth)
    }
    return Inspection(
        path=str(path),
        size_bytes=path.stat().st_size,
        layout=f"save-deploy ({kind})",
        system=SYSTEMS[config.system].title,
        backbone=config.name,
        res=config.res,
        parts=_parts(((k, t) for k, t in tensors.items()), config.system, config.depth),
        format_version=metadata.string("format_version"),
        kind=kind,
        config=switches(config),
        notes=read_notes(metadata),
        unused=tuple(k for k in tensors if k not in wanted),
        missing=tuple(sorted(wanted - tensors.keys())),
        next=f"save-export {path} --res {_res(config.res)}"
        + (" --sam sam_vit_*.pth" if kind == "adapter" else ""),
    )


def _inspect_pth(path: Path) -> Inspection:
    file = open_pth(path, shapes_only=True)
    tensors = {
        k: _Tensor(tuple(v.shape), _TORCH_NAMES.get(v.dtype, str(v.dtype)))
        for k, v in file.tensors.items()
    }
    around = [f"under '{file.wrapper}'"] if file.wrapper else []
    around += [f"names start with {file.prefix}"] if file.prefix else []
    return _foreign(path, tensors, dropped=file.dropped, wrapped=", ".join(["PyTorch", *around]))


def _foreign(
    path: Path, tensors: Mapping[str, _Tensor], *, dropped: tuple[str, ...], wrapped: str
) -> Inspection:
    layout = identify({k: t.shape for k, t in tensors.items()})
    if layout is None:
        first = ", ".join(list(tensors)[:_SHOWN])
        return Inspection(
            path=str(path),
            size_bytes=path.stat().st_size,
            layout=f"unknown ({wrapped}): {first}",
            system=None,
            backbone=None,
            res=None,
            parts=_parts(((f"?{k}", t) for k, t in tensors.items()), None, 0),
            dropped=dropped,
            unused=tuple(tensors),
        )
    table = layout.table
    named = ((layout.names.get(k, f"?{k}"), t) for k, t in tensors.items())
    return Inspection(
        path=str(path),
        size_bytes=path.stat().st_size,
        layout=f"{table.title} ({wrapped})",
        system=SYSTEMS[table.system].title if table.system else None,
        backbone=layout.backbone or (f"{layout.width} x {layout.depth}" if layout.width else None),
        res=layout.res,
        parts=_parts(named, table.system, layout.depth or 0),
        config=_foreign_switches(layout),
        remarks=table.notes,
        dropped=dropped,
        unused=layout.unmatched,
        missing=layout.missing,
        next=_next(path, layout) if path.suffix in PTH_SUFFIXES else "",  # what a load reads
    )


def switches(config: SaveConfig) -> dict[str, Any]:
    """The fields in which a configuration differs from its preset, SAVE(**)."""
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
    tensors: Iterable[tuple[str, _Tensor]], system: str | None, depth: int
) -> tuple[Part, ...]:
    """Group by part; names that are none of ours come as `?name`."""
    groups: dict[str, list[_Tensor]] = {}
    for name, tensor in tensors:
        groups.setdefault(_group(name, depth), []).append(tensor)
    trains = SYSTEMS[system].trains if system else ()
    return tuple(
        Part(
            name=group,
            tensors=len(found),
            parameters=sum(t.numel for t in found),
            bytes=sum(t.numel * _DTYPES.get(t.dtype, 0) for t in found),
            dtypes=tuple(sorted({t.dtype for t in found})),
            trained=group in trains,
        )
        for group, found in groups.items()
    )


def _group(name: str, depth: int) -> str:
    try:
        return group_of(name, depth)
    except SaveDeployError:
        return "unknown"


def _names(config: SaveConfig) -> list[str]:
    with torch.device("meta"):
        return list(SaveModel(config).state_dict())


def _res(res: int | None) -> int:
    """The resolution to export at: the file's, or 256 where it has another."""
    return res if res in RESOLUTIONS else 256


def _next(path: Path, layout: Layout) -> str:
    """The command that makes use of the file."""
    if layout.name == "vggish":
        return f"save-train --sam sam_vit_b_01ec64.pth --vggish {path}"
    if layout.unmatched or layout.backbone is None:
        return ""
    if layout.table.system is None:
        return f"save-train --sam {path}"
    if layout.missing_groups == ("audio_encoder",):
        return f"save-deploy checkpoint convert {path} OUT.safetensors --vggish vggish-10086976.pth"
    return f"save-export {path} --res {_res(layout.res)}" if layout.complete else ""
