"""Write site/ from bundle/: a page that masks sounding pixels, for any static file server."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from save_deploy.bundle import GRAPHS, Manifest
from save_deploy.errors import BundleError, OutputError
from save_deploy.files import check_folder_target, new_folder
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.golden import ANSWERS, CONFORMANCE, GOLDEN
from save_deploy.runtime.web.library import FOR_CPU, FOR_GPU, archive, members
from save_deploy.runtime.web.options import VERSION, SiteOptions

ABOUT, BUNDLE, RUNTIME = "site.json", "bundle", "ort"  # names in the site
FORMAT = "save-deploy-web"
MAX_WEIGHTS = 2_000_000_000  # bytes of both graphs; WebAssembly has 4 GB and keeps two copies
_PAGE = Path(__file__).parent / "page"
_AT_ROOT = ("index.html", "sw.js")  # templates; the other files are copied
_RUNS_NOT = ("fp8", "bf16")  # precisions that ONNX Runtime Web has no kernels for


@dataclass(frozen=True)
class Site:
    """Size of a page in bytes. loaded: bytes that a browser loads, (with WebGPU, without)."""

    size: int
    loaded: tuple[int, int]


def write_site(bundle: Path, options: SiteOptions) -> Site:
    """Write the page into the new folder options.out.

    Raises BundleError for a bundle that is incomplete, altered or cannot run in a browser,
    BackendError if the page's runtime is missing, OutputError for the target.
    """
    manifest = Manifest.read(bundle)
    _check_runs(manifest)
    check_folder_target(options.out, force=options.force, is_ours=_check_ours)
    names = _names(bundle, manifest)
    manifest.verify(bundle)
    runtime = members(archive(options.runtime, fetch=options.fetch))
    is_ours = _check_ours if options.force else None
    with new_folder(options.out, what="the page", is_ours=is_ours) as folder:
        for name in names:
            target = folder / BUNDLE / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, target)
        (folder / RUNTIME / VERSION).mkdir(parents=True)
        for name, content in runtime.items():
            (folder / RUNTIME / VERSION / name).write_bytes(content)
        about = json.dumps(_about(manifest, _graphs(bundle, manifest), names), indent=1)
        (folder / ABOUT).write_text(about + "\n")
        _write_page(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        site = Site(size, _loaded(folder, size))
    return site


def _check_runs(manifest: Manifest) -> None:
    precision, batch = manifest.precision["precision"], manifest.model.inputs[0].shape[0]
    size = sum(manifest.files[name].size for name in manifest.files if ".onnx" in name)
    if any(kind in precision for kind in _RUNS_NOT):
        raise BundleError(
            "ONNX Runtime Web cannot run this bundle",
            got=precision,
            expected="fp32, fp16 or int8",
            hint="save-export --fp32 -o DIR",
        )
    if batch != 1:
        raise BundleError(
            "a page masks one frame per call",
            got=f"a bundle of {batch} frames per call",
            expected="one frame per call",
            hint="save-export --batch 1 -o DIR",
        )
    if size > MAX_WEIGHTS:
        raise BundleError(
            "too large for a browser",
            got=f"graphs of {size / 1e9:.1f} GB",
            expected=f"at most {MAX_WEIGHTS / 1e9:.0f} GB",
            hint="export with --int8 or --fp16, or a smaller model",
        )


def _graphs(bundle: Path, manifest: Manifest) -> dict[str, list[str]]:
    """Return model and audio -> names of the graph and its weight files."""
    return {
        Path(name).stem: [name, *weight_files(bundle / name, manifest.files)] for name in GRAPHS
    }


def _names(bundle: Path, manifest: Manifest) -> list[str]:
    """Return the names of the bundle's files that the page reads."""
    names = [name for files in _graphs(bundle, manifest).values() for name in files]
    if manifest.golden:
        names += [f"{GOLDEN}/{name}.npy" for name in ("image", "waveform", "mask_logits")]
    if pack := manifest.conformance:
        names += [pack[name] for name in ANSWERS]
        names += [case[key] for case in pack["cases"] for key in ("frame", "sound", "mask")]
    return list(dict.fromkeys(names))


def _about(
    manifest: Manifest, graphs: dict[str, list[str]], names: Iterable[str]
) -> dict[str, Any]:
    """Return site.json: only what the page uses, so nothing about the exporting machine."""
    golden = {key: manifest.golden[key] for key in ("n", "budget")} if manifest.golden else None
    return {
        "format": FORMAT,
        "runtime": VERSION,
        "model": manifest.config.name,
        "precision": manifest.precision["precision"],
        "side": manifest.config.res,
        "graphs": graphs,
        "golden": golden,
        "conformance": manifest.conformance or None,
        "files": {name: vars(manifest.files[name]) for name in names},
    }


def _write_page(folder: Path) -> None:
    """Write the page's files to a folder named by their hash, so that browsers may cache it forever."""
    files = {path.name: path.read_text() for path in sorted(_PAGE.iterdir()) if path.is_file()}
    about = (folder / ABOUT).read_text()
    version = hashlib.sha256("".join([*files.values(), about]).encode()).hexdigest()[:16]
    page = f"page-{version}"
    own = [name for name in files if name not in _AT_ROOT]
    (folder / page).mkdir()
    for name in own:
        (folder / page / name).write_text(files[name])
    slots = {
        "page": page,
        "version": version,
        "urls": json.dumps(["./", ABOUT, *(f"{page}/{name}" for name in own)]),
    }
    for name in _AT_ROOT:
        text = re.sub(r"\{\{(\w+)\}\}", lambda slot: slots[slot[1]], files[name])
        (folder / name).write_text(text)


def _loaded(folder: Path, size: int) -> tuple[int, int]:
    """Return the bytes loaded before the first mask, (with WebGPU, without).

    size: bytes of the whole page. The other runtime and the files of the check are not loaded.
    """
    place = folder / BUNDLE / CONFORMANCE
    size -= sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    gpu, cpu = (
        sum((folder / RUNTIME / VERSION / name).stat().st_size for name in names)
        for names in (FOR_GPU, FOR_CPU)
    )
    return size - cpu, size - gpu


def _check_ours(folder: Path) -> None:
    """Raise OutputError unless the folder contains a page written by write_site."""
    try:
        found = json.loads((folder / ABOUT).read_text()).get("format")
    except (OSError, ValueError, AttributeError):
        found = None
    if found != FORMAT:
        raise OutputError(f"the folder has no {ABOUT} of a page")
