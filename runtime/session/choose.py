"""Choose a backend and the bundle's file for it: an engine, a GPU provider, or the CPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from save_deploy.runtime.session.open import CPU_BACKENDS, ENGINE_BACKENDS, known_backend
from save_deploy.runtime.session.ort import CUDA, PROVIDERS, TENSORRT, require_provider
from save_deploy.runtime.session.ort_cuda import CudaOptions

_log = logging.getLogger(__name__)
BUILD = {
    "tensorrt_rtx": "save-build BUNDLE --library rtx",
    "tensorrt": "save-build BUNDLE --library tensorrt, on this GPU",
}


@dataclass(frozen=True)
class Choice:
    """Backend and file for open_session.

    engine: manifest entry of the chosen engine, else None.
    machine: set for GPU backends; its libraries include the version of the backend.
    settings: provider settings that change numerical results; part of the self-test's key.
    why: reason for a CPU backend other than the rule of `auto`.
    """

    backend: str
    file: str = GRAPH
    engine: RawEntry | None = None
    machine: Machine | None = None
    settings: str = ""
    why: str = ""

    def with_settings(self, cuda: CudaOptions) -> Choice:
        """Add the CUDA provider's settings, which change its numerical results."""
        return replace(self, settings=str(cuda)) if self.backend == PROVIDERS[CUDA] else self


def choose(
    backend: str, folder: Path, manifest: Manifest, *, hashed: bool = False, trust: bool = False
) -> Choice:
    """Choose the file for a backend.

    backend: a name, or auto for the first engine that can run here, else ONNX Runtime on a GPU, else
    the CPU.
    hashed: the files were already compared with their hashes.
    trust: also accept engines that were not built on this machine.
    Raises BackendError for an unknown backend and for a requested engine that is missing or refused.
    """
    backend = known_backend(backend)
    if backend in ENGINE_BACKENDS:
        return _engine(backend, folder, manifest, hashed, trust)
    if backend in PROVIDERS.values():
        return Choice(backend, machine=_provider_machine(backend))
    return _auto(folder, manifest, hashed, trust) if backend == "auto" else Choice(backend)


def runs_on_cpu(backend: str) -> bool:
    """Return True if `choose` returns a CPU backend for this name, whatever the bundle has."""
    backend = known_backend(backend)
    return backend in CPU_BACKENDS or (backend == "auto" and not probe_machine(()).gpus)


def require_machine(backend: str, manifest: Manifest, *, trust: bool = False) -> None:
    """Check the part of `choose` that needs no file, before hashing, which takes seconds.

    Raises BackendError if no requested engine can run here or the provider cannot load.
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
        # for a version mismatch alone, the library's check of the file header decides later
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
    """Return the error of the engine with the fewest refusals."""
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
    """Return GPU, driver and version of ONNX Runtime, and of TensorRT if the provider uses it."""
    version = str(import_onnxruntime().__version__)
    if backend == PROVIDERS[TENSORRT]:
        from importlib import metadata  # not at every start: it is slow

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
        _log.info("%s is skipped: %s", entry["file"], found[0].what)
    try:
        require_provider(CUDA)
    except BackendError as error:
        _log.info("ONNX Runtime's CUDA provider is skipped: %s", error.what)
        return Choice("auto")
    return Choice(PROVIDERS[CUDA], machine=_provider_machine(PROVIDERS[CUDA]))
