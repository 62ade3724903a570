"""save-deploy cache: list and delete cached engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.tables import new_table, show
from save_deploy.files import cache_root

_KEPT = {
    "calibration": "calibration tables of earlier exports",
    "engines_built_here": "hashes of engines that were built on this machine",
    "faster": "which CPU backend save-compare measured to be faster for a bundle",
    "lanes": "whether several frames at a time are faster here, as measured",
    "links": "bundles made of links, as OpenVINO and ONNX Runtime open them",
    "onnxruntime": "graphs as ONNX Runtime optimized them, with packed weights",
    "onnxruntime-tensorrt": "engines and timings of ONNX Runtime's TensorRT",
    "openvino": "models as OpenVINO compiled them",
    "search": "precision searches that were ended, to go on with",
    "self_test": "GPUs on which a bundle passed its golden samples",
    "tensorrt-rtx": "kernels that TensorRT for RTX compiled on this machine",
    "web": "the runtime that save-deploy web packs",
}


def cache_ls() -> None:
    """List what is kept for the next time: built engines, and the rest by folder."""
    from save_deploy.export.engine import cache

    found = [*cache.unfinished(), *cache.entries()]
    table = new_table("key", "library", "targets", "MB", "days")
    for e in found:
        library = "damaged" if e.damaged else e.library
        library = "unfinished" if e.unfinished else library
        row = (e.key[:12], library, " ".join(e.targets), f"{e.size / 1e6:.1f}", f"{e.age_days:.1f}")
        table.add_row(*row)
    show(table)
    print(f"{len(found)} engines, {sum(e.size for e in found) / 1e6:.1f} MB in {cache.folder()}")
    _show_rest(cache_root())


def _show_rest(root: Path) -> None:
    """What is kept beside engines, by folder."""
    table = new_table("folder", "holds", "files", "MB")
    for folder in sorted(path for path in _entries(root) if path.name != "engines"):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        sizes += [folder.stat().st_size] if folder.is_file() else []
        holds = _KEPT.get(folder.name, "")
        table.add_row(folder.name, holds, str(len(sizes)), f"{sum(sizes) / 1e6:.1f}")
    if table.row_count:
        print(f"also kept in {root}:")
        show(table)


def _entries(root: Path) -> list[Path]:
    try:
        return list(root.iterdir())
    except OSError:  # no cache yet
        return []


def cache_rm(
    key: Annotated[
        str, typer.Argument(help="Start of a key of `cache ls`. Default: all.", show_default=False)
    ] = "",
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Only those older than this.", show_default=False),
    ] = None,
) -> None:
    """Delete cached engines of earlier builds. Engines in bundles are kept."""
    from save_deploy.export.engine import cache

    gone = cache.remove(key, older_than_days=older_than)
    print(f"removed {len(gone)} engines, {sum(e.size for e in gone) / 1e6:.1f} MB")
