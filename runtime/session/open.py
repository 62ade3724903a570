"""Which backend runs a graph: the one asked for, or the best that is installed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import psutil

from save_deploy.errors import BackendError
from save_deploy.runtime.session.base import BufferedSession
from save_deploy.runtime.session.openvino import OpenVinoSession
from save_deploy.runtime.session.ort import OrtSession
from save_deploy.specs import GraphSpec

BACKENDS = ("auto", "onnxruntime", "openvino")
ENV_CACHE = "SAVE_DEPLOY_CACHE"
# Compiled models over this are not cached: it would write gigabytes to save seconds.
_CACHED_BYTES = 1_500_000_000
# Peak of loading over the size of the file: FP16 weights become FP32, FP32 ones are packed.
_PACKED_FACTOR = 2.5


def available_backends() -> tuple[str, ...]:
    """Backends whose package is installed, the preferred first."""
    packages = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
    return tuple(b for b, package in packages.items() if importlib.util.find_spec(package))


def open_session(
    backend: str,
    path: Path,
    spec: GraphSpec,
    *,
    threads: int | None = None,
    sha256: str | None = None,
    low_memory: bool | None = None,
) -> BufferedSession:
    """auto is OpenVINO where it is installed and its copies of the weights fit.

    sha256 of the file, when known, keys the cache of compiled models. low_memory (ONNX Runtime):
    weights stay mapped from the file, which is slower; default: where packed FP32 copies would not
    fit into free memory. Raises BackendError for an unknown, missing or failing backend.
    """
    if backend not in BACKENDS:
        raise BackendError("unknown backend", got=backend, expected=", ".join(BACKENDS))
    size = _graph_bytes(path)
    if low_memory is None:
        low_memory = _PACKED_FACTOR * size > psutil.virtual_memory().available
    if backend == "auto":
        backend = available_backends()[0] if not low_memory else "onnxruntime"
    if backend == "openvino":
        cached = sha256 is not None and size <= _CACHED_BYTES
        cache = _writable(cache_root() / "openvino" / str(sha256)[:16]) if cached else None
        return OpenVinoSession(path, spec, threads=threads, cache_dir=cache)
    return OrtSession(path, spec, threads=threads, low_memory=low_memory)


def cache_root() -> Path:
    """Where compiled models are kept: $SAVE_DEPLOY_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(ENV_CACHE) or Path(base) / "save-deploy")


def _writable(folder: Path) -> Path | None:
    """The folder, made if need be; None where nothing may be written (read-only containers)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _graph_bytes(path: Path) -> int:
    data = path.with_name(path.name + ".data")
    return sum(p.stat().st_size for p in (path, data) if p.is_file())
