"""GPUs and driver, asked from NVIDIA's own libraries through ctypes: no CUDA toolkit, no torch.

Not run on a GPU yet: the calls were tried against fakes and on a machine without a driver.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

_WINDOWS = sys.platform == "win32"
CUDA_LIBRARY = "nvcuda.dll" if _WINDOWS else "libcuda.so.1"
NVML_LIBRARY = "nvml.dll" if _WINDOWS else "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Gpu:
    """One GPU as CUDA counts them (CUDA_VISIBLE_DEVICES applies). free_bytes: None when unknown."""

    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int | None

    @property
    def target(self) -> str:
        """SM86 for compute capability 8.6."""
        return "SM{}{}".format(*self.compute_capability)


@dataclass(frozen=True)
class Nvidia:
    """driver: its version, such as 580.65.06; cuda: the newest CUDA it serves; problem: why not."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str = ""


class _NvidiaError(Exception):
    """A call of the driver that did not succeed; never leaves this file."""


def read_nvidia() -> Nvidia:
    """What the driver says. Never raises and prints nothing: a missing driver is `problem`."""
    try:
        cuda = ctypes.CDLL(CUDA_LIBRARY)
    except OSError as error:
        return Nvidia(problem=f"no NVIDIA driver: {error}")
    try:
        nvml: Any = ctypes.CDLL(NVML_LIBRARY)
    except OSError:
        nvml = None
    return read_from(cuda, nvml)


def read_from(cuda: Any, nvml: Any | None) -> Nvidia:
    """As read_nvidia, on loaded libraries; nvml None leaves driver and free memory unknown."""
    driver = _driver_version(nvml) if nvml is not None else None
    version, count = ctypes.c_int(), ctypes.c_int()
    try:
        _ask(cuda, "cuInit", 0)
        _ask(cuda, "cuDriverGetVersion", ctypes.byref(version))
        _ask(cuda, "cuDeviceGetCount", ctypes.byref(count))
        gpus = tuple(_read_gpu(cuda, nvml, i) for i in range(count.value))
    except _NvidiaError as error:
        return Nvidia(driver=driver, problem=str(error))
    served = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Nvidia(gpus, driver, served, "" if gpus else "the driver sees no GPU")


def _read_gpu(cuda: Any, nvml: Any | None, index: int) -> Gpu:
    device, total = ctypes.c_int(), ctypes.c_size_t()
    name, bus = ctypes.create_string_buffer(256), ctypes.create_string_buffer(64)
    major, minor = ctypes.c_int(), ctypes.c_int()
    _ask(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _ask(cuda, "cuDeviceGetName", name, len(name), device)
    _ask(cuda, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    _ask(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    _ask(cuda, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
    # NVML counts all GPUs, CUDA only the visible ones: the bus address names the same one in both
    _ask(cuda, "cuDeviceGetPCIBusId", bus, len(bus), device)
    free = _free_bytes(nvml, bus.value) if nvml is not None else None
    return Gpu(name.value.decode(), (major.value, minor.value), total.value, free)


def _ask(cuda: Any, call: str, *arguments: Any) -> None:
    code = getattr(cuda, call)(*arguments)
    if code:
        raise _NvidiaError(f"the driver answers {call} with error {code}")


class _Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


def _driver_version(nvml: Any) -> str | None:
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        return None
    return text.value.decode()


def _free_bytes(nvml: Any, bus_id: bytes) -> int | None:
    """Free memory without a CUDA context; None where NVML refuses (such as a GPU cut into parts)."""
    handle, memory = ctypes.c_void_p(), _Memory()
    if nvml.nvmlDeviceGetHandleByPciBusId_v2(bus_id, ctypes.byref(handle)):
        return None
    if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    return int(memory.free)
