"""Open a graph as a session on a given backend, or on the preferred CPU backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from save_deploy.bundle import GraphSpec
from save_deploy.errors import BackendError, UnknownBackend
from save_deploy.extras import install_line
from save_deploy.files import cache_folder, cache_root
from save_deploy.machine import available_bytes, has_int8_dot_product
from save_deploy.precision import Precision
from save_deploy.runtime.session.base import Session
from save_deploy.runtime.session.compiled import Cache
from save_deploy.runtime.session.ort import PROVIDERS, OrtSession
from save_deploy.runtime.session.ort_cuda import CudaOptions

CPU_BACKENDS = ("onnxruntime", "openvino")
ENGINE_BACKENDS = ("tensorrt", "tensorrt_rtx")
GPU_BACKENDS = (*PROVIDERS.values(), *ENGINE_BACKENDS)
BACKENDS = ("auto", *CPU_BACKENDS, *GPU_BACKENDS)
# Names shown to users, with hyphens: `tensorrt-rtx`, `onnxruntime-tensorrt`.
SHOWN_BACKENDS = tuple(name.replace("_", "-") for name in BACKENDS)
# Larger compiled models are not cached: the cache would take gigabytes and save only seconds.
_CACHED_BYTES = 1_500_000_000
# Peak memory of loading / file size: FP16 weights become FP32, FP32 weights are packed.
PACKED_FACTOR = 2.5


@dataclass(frozen=True)
class Content:
    """Identity of a bundle's file.

    sha256: hash of an engine, or of a graph with its weights; key of the cache. None disables it.
    weights: names of a graph's external weight files in the same folder.
    small_weights: no INT8 weight exceeds SMALL_WEIGHT.
    confirm: raises BundleError unless the files have this hash. Without it the caches of the CPU
        backends are only read.
    """

    sha256: str | None = None
    weights: tuple[str, ...] = ()
    small_weights: bool = False
    confirm: Callable[[], object] | None = None

    def cache(self, backend: str) -> Cache | None:
        """Return the cache of a CPU backend for this graph."""
        if self.sha256 is None:
            return None
        return Cache(cache_root() / backend / self.sha256[:16], self.confirm)


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine.

    host_code: allow the host code in a version-compatible engine from a trusted source.
    refit_from: ONNX file with the weights of an engine built without weights.
    """

    host_code: bool = False
    refit_from: Path | None = None


def known_backend(name: str, *, also: tuple[str, ...] = ()) -> str:
    """Return the backend of a name, whose words may be joined by - or _.

    also: other accepted names.
    Raises UnknownBackend with the closest name.
    """
    spelled = dict(zip(SHOWN_BACKENDS, BACKENDS, strict=True)) | {word: word for word in also}
    word = str(name)[:80].lower().replace("_", "-")
    found = spelled.get(word)
    if found is None:
        import difflib

        near = difflib.get_close_matches(word, spelled, cutoff=0.5)
        raise UnknownBackend(
            "unknown backend",
            got=str(name)[:80],
            expected=", ".join(spelled),
            hint=f"--backend {near[0]}" if near else "",
        )
    return found


def available_backends() -> tuple[str, ...]:
    """Return the CPU backends whose package is installed, preferred first."""
    packages = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
    return tuple(b for b, package in packages.items() if importlib.util.find_spec(package))


def open_session(
    backend: str,
    path: Path,
    spec: GraphSpec,
    *,
    threads: int | None = None,
    streams: int = 1,
    content: Content = Content(),
    low_memory: bool | None = None,
    precision: str = "fp32",
    engine: EngineOptions = EngineOptions(),
    cuda: CudaOptions = CudaOptions(),
) -> Session:
    """Open one graph or engine as a session.

    backend: auto is OpenVINO if installed and its weight copies fit into memory, else ONNX Runtime,
    which also is the choice for INT8 on a CPU without an INT8 dot product; only load() also considers
    engines and GPUs.
    path: an ONNX file; for tensorrt and tensorrt_rtx an engine that engine_check and engine_trust
    have accepted.
    threads: CPU threads of all streams together; None for all cores.
    streams: calls that run at the same time on a CPU backend, of the session and its twins.
    low_memory: ONNX Runtime keeps the weights mapped from the file, which is slower. None: if packed
    FP32 copies do not fit into free memory.
    precision: precision of the graph, for ONNX Runtime's TensorRT provider.
    cuda: settings of ONNX Runtime's CUDA provider.
    Raises BackendError for an unknown, missing or failing backend, BundleError for a graph or engine
    whose inputs or outputs differ from the spec.
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
    size = graph_bytes(path, content.weights)
    if low_memory is None:
        low_memory = not fits(path, content.weights)
    if backend == "auto":
        backend = preferred_backend(precision, low_memory=low_memory)
    if backend == "openvino":
        from save_deploy.runtime.session.openvino import OpenVinoSession

        cache = content.cache(backend) if size <= _CACHED_BYTES else None
        return OpenVinoSession(
            path, spec, threads=threads, streams=streams, cache=cache, weights=content.weights
        )
    return OrtSession(
        path, spec, threads=threads, streams=streams, low_memory=low_memory,
        weights=content.weights, small_weights=content.small_weights,
        cache=content.cache(backend),
    )  # fmt: skip


def open_both(
    model: Callable[[], Session], audio: Callable[[], Session], stack: ExitStack, *, at_once: bool
) -> tuple[Session, Session]:
    """Open two sessions, which the stack closes; at_once: side by side."""
    if not at_once:
        return stack.enter_context(model()), stack.enter_context(audio())
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(lambda: stack.enter_context(audio()))
        return stack.enter_context(model()), heard.result()


def preferred_backend(precision: str, *, low_memory: bool = False) -> str:
    """Return the CPU backend of `auto`. Raises BackendError when none is installed.

    ONNX Runtime with low_memory, because it can map weights, and for INT8 on a CPU without an INT8
    dot product, where its kernels are faster than OpenVINO's (docs/benchmarks.md).
    """
    found = available_backends()
    if not found:
        raise BackendError(
            "no backend is installed",
            got="neither onnxruntime nor openvino",
            expected="one of them",
            hint=f"{install_line('cpu')}, or {install_line('openvino')}",
        )
    int8 = Precision.parse(precision).quantized == "int8"
    preferred = low_memory or (int8 and not has_int8_dot_product())
    return "onnxruntime" if preferred and "onnxruntime" in found else found[0]


def _open_gpu(
    backend: str,
    path: Path,
    spec: GraphSpec,
    threads: int | None,
    content: Content,
    precision: str,
    cuda: CudaOptions,
) -> Session:
    from save_deploy.runtime.session.ort_gpu import OrtGpuSession

    cache = _cache(backend, content.sha256) if backend != "onnxruntime-cuda" else None
    provider = next(name for name, value in PROVIDERS.items() if value == backend)
    return OrtGpuSession(
        path, spec, provider=provider, precision=precision, threads=threads, cache_dir=cache,
        weights=content.weights, cuda=cuda,
    )  # fmt: skip


def cpu_bytes(path: Path, weights: Sequence[str] = ()) -> int:
    """Estimate the memory in bytes for an ONNX file on the CPU with packed weights."""
    return int(PACKED_FACTOR * graph_bytes(path, weights))


def fits(path: Path, weights: Sequence[str] = ()) -> bool:
    """Return True if free memory is enough for packed weights (see cpu_bytes)."""
    return cpu_bytes(path, weights) <= available_bytes()


def graph_bytes(path: Path, weights: Sequence[str] = ()) -> int:
    """Return the size in bytes of an ONNX file with its external data.

    weights: names of that data; NAME.data without them.
    """
    files = [path, *(path.with_name(name) for name in weights or (f"{path.name}.data",))]
    return sum(p.stat().st_size for p in files if p.is_file())


def _cache(kind: str, sha256: str | None) -> Path | None:
    return None if sha256 is None else cache_folder(kind, sha256[:16])
