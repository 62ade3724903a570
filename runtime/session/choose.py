"""Choice of a backend and of the bundle's file for it: an engine, a GPU provider, or the CPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from save_deploy.bundle import Manifest
from save_deploy.errors import BackendError
from save_deploy.libraries import import_onnxruntime
from save_deploy.runtime.engine_check import (
    GRAPH,
    Machine,
    RawEntry,
    Refusal,
    engine_refusals,
    machine_refusals,
    probe_machine,
    refusal_error,
)
from save_deploy.runtime.engine_trust import trust_refusals
from save_deploy.runtime.session.open import ENGINE_BACKENDS, known_backend
from save_deploy.runtime.session.ort import CUDA, PROVIDERS, TENSORRT, require_provider
from save_deploy.runtime.session.ort_cuda import CudaOptions

_log = logging.getLogger(__name__)
BUILD = {
    "tensorrt_rtx": "save-deploy build BUNDLE --library rtx",
    "tensorrt": "save-deploy build BUNDLE --library tensorrt, on this GPU",
}


@dataclass(frozen=True)
class Choice:
    """backend of open_session and the file for it. engine: its entry, else None; machine: of a GPU
    backend, with the version of what runs there among its libraries; settings: other than the files,
    what its numbers depend on."""

    backend: str
    file: str = GRAPH
    engine: RawEntry | None = None
    machine: Machine | None = None
    settings: str = ""

    def with_settings(self, cuda: CudaOptions) -> Choice:
        """What the CUDA provider is told changes its numbers: a verdict belongs to it."""
        return replace(self, settings=str(cuda)) if self.backend == PROVIDERS[CUDA] else self


def choose(
    backend: str, folder: Path, manifest: Manifest, *, hashed: bool = False, trust: bool = False
) -> Choice:
    """auto: the first engine that may run here, else ONNX Runtime on a GPU, else the CPU.

    hashed: the files were compared with their hashes already. trust: engines that were not built on
    this machine may run, too. Raises BackendError for an unknown backend, and for an engine that is
    asked for and missing or refused.
    """
    backend = known_backend(backend)
    if backend in ENGINE_BACKENDS:
        return _engine(backend, folder, manifest, hashed, trust)
    if backend in PROVIDERS.values():
        return Choice(backend, machine=_provider_machine(backend))
    return _auto(folder, manifest, hashed, trust) if backend == "auto" else Choice(backend)


def require_machine(backend: str, manifest: Manifest, *, trust: bool = False) -> None:
    """The part of `choose` that needs no file: it answers before files are hashed, which takes seconds.

    Raises BackendError when no engine asked for may run here, or a provider cannot load.
    """
    backend = known_backend(backend)
    provider = next((p for p, name in PROVIDERS.items() if name == backend), None)
    if provider is not None:
        require_provider(provider)
    if backend in ENGINE_BACKENDS:
        entries, machine = _entries(backend, manifest), probe_machine()
        against = lambda entry: [
            *machine_refusals(entry, machine),
            *trust_refusals(entry, manifest.files, trust=trust),
        ]
        found = [(entry["file"], against(entry)) for entry in entries]
        # of a version alone the library has the last word, by the file's header
        if all(refusals and [r.rule for r in refusals] != ["version"] for _, refusals in found):
            raise _nearest(found)


def _entries(library: str, manifest: Manifest) -> list[RawEntry]:
    entries: list[RawEntry] = [e for e in manifest.engines if e.get("library") == library]
    if not entries:
        there = ", ".join(str(e.get("file")) for e in manifest.engines) or "no engine"
        raise BackendError(
            f"the bundle has no engine of {library}",
            got=there,
            expected=f"an engine of {library}",
            hint=f"{BUILD[library]}, or --backend onnxruntime",
        )
    return entries


def _nearest(refused: Sequence[tuple[str, list[Refusal]]]) -> BackendError:
    """The error of the engine with the fewest reasons against it."""
    name, refusals = min(refused, key=lambda item: len(item[1]))
    return refusal_error(f"{name} cannot run here", refusals)


def _engine(library: str, folder: Path, manifest: Manifest, hashed: bool, trust: bool) -> Choice:
    machine, refused = probe_machine(), []
    for entry in _entries(library, manifest):
        found = engine_refusals(entry, folder, manifest.files, machine, hashed=hashed)
        found += trust_refusals(entry, manifest.files, trust=trust)
        if not found:
            return Choice(library, entry["file"], entry, machine)
        refused.append((entry["file"], found))
    raise _nearest(refused)


def _provider_machine(backend: str) -> Machine:
    """GPU and driver, and ONNX Runtime's version, with TensorRT's where it is used."""
    version = str(import_onnxruntime().__version__)
    if backend == PROVIDERS[TENSORRT]:
        with contextlib.suppress(metadata.PackageNotFoundError):  # installed system-wide
            version += f", TensorRT {metadata.version('tensorrt')}"
    return replace(probe_machine(()), libraries={backend: version})


def _auto(folder: Path, manifest: Manifest, hashed: bool, trust: bool) -> Choice:
    if not probe_machine(()).gpus:  # before any library is imported
        return Choice("auto")
    machine = probe_machine()
    for entry in manifest.engines:
        found = engine_refusals(entry, folder, manifest.files, machine, hashed=hashed)
        found += trust_refusals(entry, manifest.files, trust=trust)
        if not found:
            return Choice(entry["library"], entry["file"], entry, machine)
        _log.info("%s is passed over: %s", entry["file"], found[0].what)
    try:
        require_provider(CUDA)
    except BackendError as error:
        _log.info("ONNX Runtime's CUDA provider is passed over: %s", error.what)
        return Choice("auto")
    return Choice(PROVIDERS[CUDA], machine=_provider_machine(PROVIDERS[CUDA]))
