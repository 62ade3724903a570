"""Which file of a bundle runs on which backend: an engine that may run here, a GPU, or the CPU."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from save_deploy.errors import BackendError
from save_deploy.manifest import Manifest
from save_deploy.runtime.preflight import Machine, engine_refusals, probe_machine, refusal_error
from save_deploy.runtime.preflight.engine import GRAPH
from save_deploy.runtime.preflight.rules import Entry
from save_deploy.runtime.session.open import BACKENDS, ENGINE_BACKENDS
from save_deploy.runtime.session.providers import CUDA, require_provider

_log = logging.getLogger(__name__)
BUILD = {
    "tensorrt_rtx": "save-deploy build BUNDLE --library rtx",
    "tensorrt": "save-deploy build BUNDLE --library tensorrt, on this GPU",
}


@dataclass(frozen=True)
class Choice:
    """backend of open_session and the file for it; engine, machine: of an engine, else None."""

    backend: str
    file: str = GRAPH
    engine: Entry | None = None
    machine: Machine | None = None


def choose(backend: str, folder: Path, manifest: Manifest, *, hashed: bool = False) -> Choice:
    """auto: the first engine that may run here, else ONNX Runtime on a GPU, else the CPU.

    hashed: the files were compared with their hashes already. Raises BackendError for an unknown
    backend, and for an engine that is asked for and missing or refused.
    """
    if backend not in BACKENDS:
        raise BackendError("unknown backend", got=backend, expected=", ".join(BACKENDS))
    if backend in ENGINE_BACKENDS:
        return _engine(backend, folder, manifest, hashed)
    return _auto(folder, manifest, hashed) if backend == "auto" else Choice(backend)


def _engine(library: str, folder: Path, manifest: Manifest, hashed: bool) -> Choice:
    entries = [entry for entry in manifest.engines if entry.get("library") == library]
    if not entries:
        there = ", ".join(str(e.get("file")) for e in manifest.engines) or "no engine"
        raise BackendError(
            f"the bundle has no engine of {library}",
            got=there,
            expected=f"an engine of {library}",
            hint=f"{BUILD[library]}, or --backend onnxruntime",
        )
    machine = probe_machine()
    refused = []
    for entry in entries:
        found = engine_refusals(entry, folder, manifest.files, machine, hashed=hashed)
        if not found:
            return Choice(library, entry["file"], entry, machine)
        refused.append((entry["file"], found))
    name, nearest = min(refused, key=lambda item: len(item[1]))
    raise refusal_error(f"{name} cannot run here", nearest)


def _auto(folder: Path, manifest: Manifest, hashed: bool) -> Choice:
    if not probe_machine(()).gpus:  # before any library is imported
        return Choice("auto")
    machine = probe_machine()
    for entry in manifest.engines:
        found = engine_refusals(entry, folder, manifest.files, machine, hashed=hashed)
        if not found:
            return Choice(entry["library"], entry["file"], entry, machine)
        _log.info("%s is passed over: %s", entry["file"], found[0].what)
    try:
        require_provider(CUDA)
    except BackendError as error:
        _log.info("ONNX Runtime's CUDA provider is passed over: %s", error.what)
        return Choice("auto")
    return Choice("onnxruntime-cuda")
