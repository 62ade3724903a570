"""Open a graph on the backend asked for, or on the best one of the CPU."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from save_deploy.bundle import GraphSpec
from save_deploy.errors import BackendError, UnknownBackend
from save_deploy.extras import install_line
from save_deploy.files import cache_folder
from save_deploy.machine import available_bytes
from save_deploy.runtime.session.base import Session
from save_deploy.runtime.session.openvino import OpenVinoSession
from save_deploy.runtime.session.ort import PROVIDERS, OrtSession
from save_deploy.runtime.session.ort_cuda import CudaOptions
from save_deploy.runtime.session.ort_gpu import OrtGpuSession

CPU_BACKENDS = ("onnxruntime", "openvino")
ENGINE_BACKENDS = ("tensorrt", "tensorrt_rtx")
GPU_BACKENDS = (*PROVIDERS.values(), *ENGINE_BACKENDS)
BACKENDS = ("auto", *CPU_BACKENDS, *GPU_BACKENDS)
# As they are written for users: `tensorrt-rtx`, like `onnxruntime-tensorrt`.
SHOWN_BACKENDS = tuple(name.replace("_", "-") for name in BACKENDS)
# Larger compiled models are not cached: that would write gigabytes to save seconds.
_CACHED_BYTES = 1_500_000_000
# Peak of loading over the size of the file: FP16 weights become FP32, FP32 ones are packed.
PACKED_FACTOR = 2.5


@dataclass(frozen=True)
class Content:
    """What belongs to a file of a bundle. sha256: of an engine, or of a graph and its weights together:
    the key of what is kept in the cache, None: nothing is. weights: files of a graph, beside it."""

    sha256: str | None = None
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineOptions:
    """host_code: a version-compatible engine of a trusted source may run the code it carries.
    refit_from: the ONNX file of an engine without weights."""

    host_code: bool = False
    refit_from: Path | None = None


def known_backend(name: str, *, also: tuple[str, ...] = ()) -> str:
    """The backend of this name, its words joined by - or _. also: other names that are taken. Raises
    UnknownBackend with the nearest ones."""
    spelled = dict(zip(SHOWN_BACKENDS, BACKENDS, strict=True)) | {word: word for word in also}
    found = spelled.get(str(name).lower().replace("_", "-"))
    if found is None:
        near = difflib.get_close_matches(str(name)[:80], spelled, cutoff=0.5)
        raise UnknownBackend(
            "unknown backend",
            got=str(name)[:80],
            expected=", ".join(spelled),
            hint=f"--backend {near[0]}" if near else "",
        )
    return found


def available_backends() -> tuple[str, ...]:
    """CPU backends whose package is installed, the preferred first."""
    packages = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
    return tuple(b for b, package in packages.items() if importlib.util.find_spec(package))


def open_session(
    backend: str,
    path: Path,
    spec: GraphSpec,
    *,
    threads: int | None = None,
    content: Content = Content(),
    low_memory: bool | None = None,
    precision: str = "fp32",
    engine: EngineOptions = EngineOptions(),
    cuda: CudaOptions = CudaOptions(),
) -> Session:
    """auto is OpenVINO where it is installed and its copies of the weights fit; load() also considers
    engines and GPUs. path: the engine for tensorrt and tensorrt_rtx (checked by engine_check, and
    trusted: an engine is code), else an ONNX file.

    low_memory (ONNX Runtime): weights stay mapped from the file, which is slower; default: where packed
    FP32 copies would not fit into free memory. precision: of the graph, for ONNX Runtime's TensorRT;
    cuda: for its CUDA provider.
    Raises BackendError for an unknown, missing or failing backend, BundleError for a graph or engine
    with other inputs or outputs than the spec.
    """
    backend = known_backend(backend)
    if backend in ENGINE_BACKENDS:
        from save_deploy.runtime.session.tensorrt import TensorRtSession

        return TensorRtSession(
            path,
            spec,
            library=backend,
            host_code=engine.host_code,
            refit_from=engine.refit_from,
            cache_dir=_cache(backend, content.sha256),
        )
    if backend in PROVIDERS.values():
        return _open_gpu(backend, path, spec, threads, content, precision, cuda)
    size = graph_bytes(path)
    if low_memory is None:
        low_memory = not fits(path)
    if backend == "auto":
        backend = _cpu_backend(low_memory)
    if backend == "openvino":
        cache = _cache("openvino", content.sha256) if size <= _CACHED_BYTES else None
        return OpenVinoSession(
            path, spec, threads=threads, cache_dir=cache, weights=content.weights
        )
    return OrtSession(path, spec, threads=threads, low_memory=low_memory, weights=content.weights)


def _cpu_backend(low_memory: bool) -> str:
    """CPU backend of `auto`. low_memory: ONNX Runtime where installed, which keeps weights mapped."""
    found = available_backends()
    if not found:
        raise BackendError(
            "no backend is installed",
            got="neither onnxruntime nor openvino",
            expected="one of them",
            hint=f"{install_line('cpu')}, or {install_line('openvino')}",
        )
    return "onnxruntime" if low_memory and "onnxruntime" in found else found[0]


def _open_gpu(
    backend: str,
    path: Path,
    spec: GraphSpec,
    threads: int | None,
    content: Content,
    precision: str,
    cuda: CudaOptions,
) -> Session:
    cache = _cache(backend, content.sha256) if backend != "onnxruntime-cuda" else None
    provider = next(name for name, value in PROVIDERS.items() if value == backend)
    return OrtGpuSession(
        path, spec, provider=provider, precision=precision, threads=threads, cache_dir=cache,
        weights=content.weights, cuda=cuda,
    )  # fmt: skip


def cpu_bytes(path: Path) -> int:
    """Memory of the fast way to run an ONNX file on the CPU, estimated from its size."""
    return int(PACKED_FACTOR * graph_bytes(path))


def fits(path: Path) -> bool:
    """True if free memory is enough for the fast way to run an ONNX file."""
    return cpu_bytes(path) <= available_bytes()


def graph_bytes(path: Path) -> int:
    """Size of an ONNX file with its external data."""
    data = path.with_name(path.name + ".data")
    return sum(p.stat().st_size for p in (path, data) if p.is_file())


def _cache(kind: str, sha256: str | None) -> Path | None:
    return None if sha256 is None else cache_folder(kind, sha256[:16])
