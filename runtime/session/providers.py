"""Can ONNX Runtime's GPU providers load here? Asked before a session is, which would say it on
stderr and then run on the CPU. `get_available_providers()` lists what was compiled, not what loads.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
from importlib import metadata
from pathlib import Path

from save_deploy.errors import BackendError
from save_deploy.extras import named_extras
from save_deploy.libraries import import_onnxruntime
from save_deploy.machine import CUDA_LIBRARY, read_nvidia

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = {CUDA: "onnxruntime-cuda", TENSORRT: "onnxruntime-tensorrt"}
# the provider of ONNX Runtime 1.31 is linked to libnvinfer.so.10; TensorRT 11 cannot serve it
TENSORRT_MAJOR = 10
_CURE = "--backend onnxruntime runs on the CPU"


@named_extras()
def require_provider(provider: str) -> None:
    """Raise BackendError naming the first thing that is missing; nothing is printed.

    With a GPU the provider's own library is loaded, as the session is about to do; that part was not
    run on a GPU yet.
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
    """What the loader says of the provider's library, which names the first missing one; "" = none.

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
        return  # it may be installed system-wide: the loader will tell
    if version.split(".")[0] != str(TENSORRT_MAJOR):
        raise BackendError(
            f"{TENSORRT} cannot run here: it needs TensorRT {TENSORRT_MAJOR}",
            got=f"TensorRT {version}",
            expected=f"TensorRT {TENSORRT_MAJOR} (libnvinfer.so.{TENSORRT_MAJOR})",
            hint=f'pip install "tensorrt=={TENSORRT_MAJOR}.*", or {_CURE}',
        )
    importlib.import_module("tensorrt")  # loads its libraries from the package's own folder
