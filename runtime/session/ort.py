"""Sessions on ONNX Runtime: on the CPU, and on its GPU providers, where tensors stay on the device.

In order: may a provider run here, the session on the CPU, the session on a GPU, options and loading.
The GPU session was not run on a GPU yet; its binding was run with buffers on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError
from save_deploy.extras import named_extras
from save_deploy.libraries import import_onnxruntime
from save_deploy.machine import CUDA_LIBRARY, read_nvidia
from save_deploy.runtime.session.base import BufferedSession, Port, default_threads
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.device import DeviceArray, device_input
from save_deploy.runtime.session.links import gathered

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = {CUDA: "onnxruntime-cuda", TENSORRT: "onnxruntime-tensorrt"}
# the provider of ONNX Runtime 1.31 is linked to libnvinfer.so.10; TensorRT 11 cannot serve it
TENSORRT_MAJOR = 10
_CURE = "--backend onnxruntime runs on the CPU"
_PRECISE = "session.x64quantprecision"
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(half)": "float16"}
Providers = Sequence[str | tuple[str, dict[str, Any]]]


@named_extras()
def require_provider(provider: str) -> None:
    """Raise BackendError naming the first thing that is missing; nothing is printed.

    `get_available_providers()` lists what was compiled, not what loads, and a session would report the
    missing part on stderr and run on the CPU. So with a GPU the provider's own library is loaded here;
    that part was not run on a GPU yet.
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
    missing = missing_library(provider, Path(ort.__file__).parent / "capi")
    if missing:
        raise BackendError(
            f"{provider} cannot run here: a library is missing",
            got=missing,
            expected="all libraries the provider is linked to",
            hint=f'pip install "onnxruntime-gpu[cuda,cudnn]" brings CUDA\'s, or {_CURE}',
        )


def missing_library(provider: str, folder: Path) -> str:
    """The loader's error for the provider's library, which names the first missing one; empty for none.

    folder: of ONNX Runtime's shared libraries. CUDA's libraries from pip packages are loaded first.
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
    """An ONNX file on ONNX Runtime. The provider asked for is the one that runs, or an error."""

    backend = "onnxruntime"

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        provider: str = CPU,
        threads: int | None = None,
        low_memory: bool = False,
        providers: Providers | None = None,
        weights: Sequence[str] = (),
    ) -> None:
        """threads: within one operator; default all physical cores. low_memory leaves external weights
        mapped from the file (no packed copies, FP16 converted anew in every call: a third slower) and
        returns activations to the system. providers: with options, the asked one first. weights: files
        of the graph, relative to its folder.

        Raises BackendError when the provider is not active after loading (ONNX Runtime itself falls
        back to the CPU silently), BundleError when the graph has other inputs or outputs than the spec.
        """
        super().__init__(spec, threads or default_threads())
        if provider != CPU:
            require_provider(provider)
            self.backend = PROVIDERS.get(provider, self.backend)
        with gathered(path, weights) as graph:
            self._session: Any = _open(
                graph,
                session_options(self.threads, low_memory=low_memory),
                provider,
                providers or [provider],
                ["ConstantFolding"] if low_memory else None,
            )
        ports = self._session.get_inputs(), self._session.get_outputs()
        self._open_graph(path.name, *(map(_port, side) for side in ports))
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
    """A NodeArg as Port: `tensor(uint8)` -> uint8; sides without a number are names or None."""
    dtype = _DTYPES.get(found.type) or found.type.removeprefix("tensor(").removesuffix(")")
    sides = (side if isinstance(side, int) else None for side in found.shape or ())
    return Port(found.name, dtype, None if found.shape is None else tuple(sides))


class OrtGpuSession(OrtSession):
    """An ONNX file on CUDAExecutionProvider or TensorrtExecutionProvider, bound to device buffers."""

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        provider: str = CUDA,
        precision: str = "fp32",
        threads: int | None = None,
        cache_dir: Path | None = None,
        weights: Sequence[str] = (),
    ) -> None:
        """precision: of the bundle. cache_dir: where TensorRT's engines are kept between starts.
        weights: files of the graph, relative to its folder.

        Raises BackendError naming what is missing when the provider cannot run here.
        """
        self._device = "cpu" if provider == CPU else "cuda"
        super().__init__(
            path,
            spec,
            provider=provider,
            threads=threads,
            providers=_with_options(provider, precision, cache_dir),
            weights=weights,
        )

    def _bind_outputs(self) -> None:
        self._inputs = {s.name: self._value(s.shape, s.dtype) for s in self.spec.inputs}
        self._outputs = {s.name: self._value(s.shape, s.dtype) for s in self.spec.outputs}
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def _value(self, shape: tuple[int, ...], dtype: str) -> Any:
        return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(
            shape, np.dtype(dtype), self._device, 0
        )

    def _run(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._inputs[name].update_inplace(array)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        self._session.run_with_iobinding(self._binding)
        for name, value in self._outputs.items():
            np.copyto(self.buffers[name], value.numpy())

    def infer_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Device arrays (DLPack or __cuda_array_interface__) -> device arrays, no copy to the host.

        The outputs are the session's own buffers: valid until its next call.
        """
        cuda = Cuda()
        with self._lock:
            if not self._is_open:
                raise BackendError("session is closed", hint="open the bundle again")
            given = [device_input(inputs, tensor, cuda) for tensor in self.spec.inputs]
            for tensor, array in zip(self.spec.inputs, given, strict=True):
                self._binding.bind_input(
                    tensor.name, "cuda", 0, np.dtype(tensor.dtype), tensor.shape, array.pointer
                )
            self._guarded(lambda: self._session.run_with_iobinding(self._binding))
            self._binding.synchronize_outputs()
            return {
                s.name: DeviceArray(self._outputs[s.name].data_ptr(), s.shape, s.dtype)
                for s in self.spec.outputs
            }

    def _release(self) -> None:
        super()._release()
        self._inputs, self._outputs = {}, {}


def session_options(threads: int, *, low_memory: bool = False) -> Any:
    """onnxruntime.SessionOptions of every CPU run of the project."""
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = not low_memory
    if low_memory:
        levels = import_onnxruntime().GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
    # without VNNI the default kernels add two INT8 products in 16 bits, which saturates and spoils
    # masks without an error: take exact, slower kernels there (no effect with VNNI)
    options.add_session_config_entry(_PRECISE, "1")
    # threads would spin after a run, which slows other work of the application
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open(
    path: Path, options: Any, provider: str, providers: Providers, disabled: list[str] | None
) -> Any:
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
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


def _with_options(provider: str, precision: str, cache_dir: Path | None) -> Providers:
    """The provider with its options and no fallback: a node that it cannot run is an error.

    precision: of the manifest. Raises BackendError for one that the provider has no option for.
    """
    if provider == CUDA:
        # TF32 would round the inputs of float32 MatMuls to 10 bits, which no bundle asks for
        return [(CUDA, {"use_tf32": "0"})]
    if provider != TENSORRT:
        return [provider]
    parts = precision.split("_")  # fp16, or the quantized MatMuls and then the floats: int8_fp16
    unknown = set(parts) - {"fp32", "fp16", "int8"}
    if unknown:
        raise BackendError(
            f"{TENSORRT} has no option for this precision",
            got=precision,
            expected="fp32, fp16, int8 or int8_fp16",
            hint="an engine of TensorRT itself: save-deploy build BUNDLE, or --backend onnxruntime",
        )
    options = {"trt_fp16_enable": str("fp16" in parts), "trt_int8_enable": str("int8" in parts)}
    if cache_dir is not None:
        options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cache_dir)}
    return [(TENSORRT, options)]
