"""Sessions on ONNX Runtime: check of a provider, CPU session, options, and loading.

Sessions on its GPU providers are in ort_gpu.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import io
import json
import mmap
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError
from save_deploy.extras import named_extras
from save_deploy.libraries import import_onnxruntime
from save_deploy.machine import CUDA_LIBRARY, cpu_flags, cpu_name, read_nvidia, version
from save_deploy.runtime.session.base import BufferedSession, Port, default_threads
from save_deploy.runtime.session.compiled import Cache
from save_deploy.runtime.session.links import gathered
from save_deploy.runtime.session.ort_cuda import (
    RECORD_PLACEMENT,
    require_placement,
    require_version,
)
from save_deploy.runtime.session.packed import DATA, open_packed

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = {CUDA: "onnxruntime-cuda", TENSORRT: "onnxruntime-tensorrt"}
# the provider of ONNX Runtime 1.31 is linked to libnvinfer.so.10; TensorRT 11 cannot serve it
TENSORRT_MAJOR = 10
_CURE = "--backend onnxruntime runs on the CPU"
_PRECISE = "session.x64quantprecision"
_PACKED_FROM_BYTES = 1_000_000  # smaller graphs are not worth a file
# the optimized graph and its packed weights in two files, weights from 1 KiB on in the second
_WRITE_PACKED = {
    "session.optimized_model_external_initializers_file_name": DATA,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(half)": "float16"}
Providers = Sequence[str | tuple[str, dict[str, Any]]]


@named_extras()
def require_provider(provider: str) -> None:
    """Raise BackendError naming the first missing part of a provider; print nothing.

    `get_available_providers()` lists compiled-in providers, not those that load, and a session
    would print the missing part to stderr and run on the CPU. So with a GPU the provider's own
    library is loaded here; that part was not tested on a GPU.
    """
    ort = import_onnxruntime()
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"this onnxruntime has no {provider}",
            got=", ".join(ort.get_available_providers()),
            expected=provider,
            hint=f"pip install onnxruntime-gpu, or {_CURE}",
        )
    nvidia = read_nvidia()
    if not nvidia.gpus:
        raise BackendError(
            f"{provider} cannot run here: no usable NVIDIA GPU",
            got=nvidia.problem,
            expected=f"a GPU and its driver ({CUDA_LIBRARY})",
            hint=f"install NVIDIA's driver, or {_CURE}",
        )
    if provider == TENSORRT:
        _require_tensorrt()
    require_version(version("onnxruntime-gpu") or str(ort.__version__), nvidia)
    missing = missing_library(provider, Path(ort.__file__).parent / "capi")
    if missing:
        raise BackendError(
            f"{provider} cannot run here: a library is missing",
            got=missing,
            expected="all libraries the provider is linked to",
            hint=f'pip install "onnxruntime-gpu[cuda,cudnn]" brings CUDA\'s, or {_CURE}',
        )


def missing_library(provider: str, folder: Path) -> str:
    """Return the loader's error for the provider's library, or "".

    The error names the first missing library.
    folder: folder of ONNX Runtime's shared libraries. CUDA libraries from pip packages are loaded
        first.
    """
    name = {CUDA: "cuda", TENSORRT: "tensorrt"}[provider]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        import_onnxruntime().preload_dlls()
    try:
        shared = folder / "libonnxruntime_providers_shared.so"
        if shared.is_file():  # on Windows the loader of the session itself reports it
            ctypes.CDLL(str(shared), ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
    except OSError as error:
        return str(error)
    return ""


def _require_tensorrt() -> None:
    from importlib import metadata  # not at every start: it is slow

    try:
        version = metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return  # it may be installed system-wide, which the loader finds out
    if version.split(".")[0] != str(TENSORRT_MAJOR):
        raise BackendError(
            f"{TENSORRT} cannot run here: it needs TensorRT {TENSORRT_MAJOR}",
            got=f"TensorRT {version}",
            expected=f"TensorRT {TENSORRT_MAJOR} (libnvinfer.so.{TENSORRT_MAJOR})",
            hint=f'pip install "tensorrt=={TENSORRT_MAJOR}.*", or {_CURE}',
        )
    importlib.import_module("tensorrt")  # loads its libraries from the package's own folder


class OrtSession(BufferedSession):
    """An ONNX file on ONNX Runtime. The requested provider runs, or an error is raised."""

    backend = "onnxruntime"

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        provider: str = CPU,
        threads: int | None = None,
        streams: int = 1,
        low_memory: bool = False,
        providers: Providers | None = None,
        weights: Sequence[str] = (),
        small_weights: bool = False,
        cache: Cache | None = None,
    ) -> None:
        """Open an ONNX file.

        threads: of all calls together; default all physical cores.
        streams: calls that run at the same time, of this session and its twins.
        low_memory: keep external weights mapped from the file (no packed copies, FP16 converted in
            every call: a third slower) and return activation memory to the system.
        providers: providers with options, the requested one first.
        weights: files of the graph, relative to its folder.
        small_weights: as in session_options.
        cache: where the graph is kept with packed weights, on the CPU (packed.py).
        Raises BackendError when the provider is not active after loading (ONNX Runtime itself
        silently uses the CPU), and BundleError when the graph has other inputs or outputs than the
        spec.
        """
        super().__init__(spec, threads or default_threads())
        if provider != CPU:
            require_provider(provider)
            self.backend = PROVIDERS.get(provider, self.backend)
        # calling threads compute as well; the others are shared by all calls
        own = max(1, self.threads - streams + 1)
        self._session: Any = None
        if cache is not None and provider == CPU and not low_memory:
            self._session = _open_packed(path, weights, cache, own, small_weights)
        if self._session is None:
            with gathered(path, weights) as graph:
                self._session = _open(
                    graph,
                    session_options(own, low_memory=low_memory, small_weights=small_weights),
                    provider,
                    providers or [provider],
                    ["ConstantFolding"] if low_memory else None,
                )
        ports = self._session.get_inputs(), self._session.get_outputs()
        self._open_graph(path.name, *(map(_port, side) for side in ports))

    def _bind(self) -> None:
        self._binding: Any = self._session.io_binding()
        self._bind_outputs()

    def _bind_outputs(self) -> None:
        for name, buffer in self.buffers.items():
            self._binding.bind_output(
                name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data
            )

    def _run(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        self._session.run_with_iobinding(self._binding)

    def _release(self) -> None:
        self._binding = self._session = None


def _port(found: Any) -> Port:
    """Convert a NodeArg to a Port: `tensor(uint8)` -> uint8; free dimensions are names or None."""
    dtype = _DTYPES.get(found.type) or found.type.removeprefix("tensor(").removesuffix(")")
    sides = (side if isinstance(side, int) else None for side in found.shape or ())
    return Port(found.name, dtype, None if found.shape is None else tuple(sides))


def session_options(threads: int, *, low_memory: bool = False, small_weights: bool = False) -> Any:
    """Return the onnxruntime.SessionOptions of every CPU run of the project.

    small_weights: no INT8 weight exceeds SMALL_WEIGHT, so that the fast kernels are exact.
    """
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 4  # it prints its errors and raises them
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = not low_memory
    # the first call's sizes would be planned as one block, which the second call takes in addition to
    # the memory of the first: twice the activations, and the time in which the system provides them
    options.enable_mem_pattern = False
    if low_memory:
        levels = import_onnxruntime().GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
    # without VNNI the default kernels add two INT8 products in 16 bits, which saturates for large
    # weights and spoils masks without an error: take exact, slower kernels there (no effect with VNNI)
    options.add_session_config_entry(_PRECISE, "0" if small_weights else "1")
    # threads would spin after a run, which slows other work of the application
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open_packed(
    path: Path, weights: Sequence[str], cache: Cache, threads: int, small_weights: bool
) -> Any | None:
    """A CPU session on the cached graph; None without one, and for small or quantized graphs."""
    n_bytes = sum((path.parent / name).stat().st_size for name in (path.name, *weights))
    if n_bytes < _PACKED_FROM_BYTES or _is_quantized(path):
        return None

    def load(packed: Path) -> Any:
        options = session_options(threads, small_weights=small_weights)
        levels = import_onnxruntime().GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL  # all was done before
        return _load(packed, options, [CPU], None)

    def make(packed: Path) -> None:
        options = session_options(threads, small_weights=small_weights)
        options.optimized_model_filepath = str(packed)
        for entry, value in _WRITE_PACKED.items():
            options.add_session_config_entry(entry, value)
        with gathered(path, weights) as graph:
            _load(graph, options, [CPU], None)

    place = cache.folder / _packed_key(small_weights)
    return open_packed(place, load, make=make, confirm=cache.confirm, n_bytes=n_bytes)


def _is_quantized(path: Path) -> bool:
    """Return True for a graph with INT8 operators.

    ONNX Runtime 1.31 crashes in INT8 products whose packed weights it reads from a file, whatever the
    manifest says of the graph.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return re.search(rb"uantizeLinear|QLinear|MatMulInteger|ConvInteger", content) is not None


def _packed_key(small_weights: bool) -> str:
    """Hash of what decides the optimized graph and the layout of packed weights; the number of
    threads does not."""
    ort = import_onnxruntime()
    cpu = [cpu_name(), sorted(cpu_flags())]
    told = [
        ort.__version__,
        ort.get_build_info(),
        cpu,
        _WRITE_PACKED,
        {_PRECISE: not small_weights},
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _open(
    path: Path, options: Any, provider: str, providers: Providers, disabled: list[str] | None
) -> Any:
    if provider != CPU:
        options.enable_mem_pattern = True
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry(RECORD_PLACEMENT, "1")
    try:
        session = _load(path, options, providers, disabled)
    except Exception as error:  # exceptions of onnxruntime have no common base class
        raise BackendError(
            f"onnxruntime cannot run {path.name} on {provider}",
            got=str(error).splitlines()[0][:300],
            expected="a loaded session",
            hint="install the provider's libraries, or use the CPU",
        ) from error
    active = session.get_providers()[0]
    if active != provider:
        raise BackendError(
            "onnxruntime fell back to another provider",
            got=active,
            expected=provider,
            hint="install the provider's libraries, or use the CPU",
        )
    if provider == CUDA:  # TensorRT's nodes are whole parts of the graph
        require_placement(session, provider, path.name)
    return session


def _load(path: Path, options: Any, providers: Providers, disabled: list[str] | None) -> Any:
    """A session with exact INT8 kernels where the graph allows them. They convert the sign of weights,
    which fails for a weight that two MatMuls share (our graphs share none; others may)."""
    load = partial(
        import_onnxruntime().InferenceSession,
        str(path),
        options,
        providers=list(providers),
        disabled_optimizers=disabled,
    )
    try:
        return load()
    except Exception as error:
        if "AddInitializedOrtValue" not in str(error):
            raise
    options.add_session_config_entry(_PRECISE, "0")
    return load()
