"""Facts about this machine: CPU, memory, NVIDIA GPUs and driver, library versions. No torch.

GPUs and driver are queried from NVIDIA's libraries through ctypes, without CUDA toolkit and
nvidia-smi. These calls were tested with fakes and on a machine without a driver, not on a GPU.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# names of distributions, which may differ from the names of modules
PACKAGES = (
    "save-deploy", "torch", "onnx", "onnxruntime-gpu", "onnxruntime", "openvino", "tensorrt",
    "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "cuda-bindings", "numpy", "segment-anything",
)  # fmt: skip
_WINDOWS = sys.platform == "win32"
CUDA_LIBRARY = "nvcuda.dll" if _WINDOWS else "libcuda.so.1"
NVML_LIBRARY = "nvml.dll" if _WINDOWS else "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_SM, _MEMORY = 1, 2  # nvmlClockType_t


def cpu_name() -> str:
    """Return the model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets as Linux lists them, empty when unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    listed = (line for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, ":").split(":", 1)[1].split())


def has_int8_dot_product() -> bool:
    """Return True when the CPU has an INT8 dot product (VNNI, AMX, Arm), or when unknown."""
    flags = cpu_flags()
    return not flags or bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def allowed_cores() -> int:
    """Return the number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_bytes() -> int:
    """Return the free memory of the machine, or of the container when it has a lower limit."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            left = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
        free = min(free, max(left, 0))
    return free


def describe() -> dict[str, object]:
    """Return the context of a timing: CPU, cores, memory, system."""
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def version(package: str) -> str:
    """Return the version of an installed package, "" when it is not installed."""
    from importlib import metadata  # not at every start: it is slow

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages in PACKAGES."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {n: v for n, v in found.items() if v}


def peak_memory_mib() -> float:
    """Return the largest resident size of this process so far, in MiB.

    Linux's VmHWM starts with the program; ru_maxrss would include the parent's memory at the fork.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class Gpu:
    """One GPU in the numbering of CUDA (CUDA_VISIBLE_DEVICES applies).

    free_bytes, and clocks in MHz, are None when unknown.
    """

    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int | None
    sm_mhz: int | None = None
    max_sm_mhz: int | None = None
    memory_mhz: int | None = None

    @property
    def target(self) -> str:
        """SM86 for compute capability 8.6."""
        return "SM{}{}".format(*self.compute_capability)


@dataclass(frozen=True)
class Nvidia:
    """GPUs and driver.

    driver: driver version, such as 580.65.06.
    cuda: newest CUDA version that the driver supports.
    problem: why GPUs are missing.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str = ""

    def lines(self) -> list[str]:
        """Return a line per GPU: name, driver, memory, and clocks if known."""
        return [", ".join(filter(None, self._words(gpu))) for gpu in self.gpus]

    def _words(self, gpu: Gpu) -> tuple[str, ...]:
        most = f" of at most {gpu.max_sm_mhz} MHz" if gpu.max_sm_mhz else " MHz"
        return (
            gpu.name,
            f"driver {self.driver}" if self.driver else "",
            f"{gpu.total_bytes / 2**20:.0f} MiB",
            f"SM {gpu.sm_mhz}{most}" if gpu.sm_mhz else "",
            f"memory {gpu.memory_mhz} MHz" if gpu.memory_mhz else "",
        )


class _NvidiaError(Exception):
    """A failed driver call; not raised outside of this file."""


def read_nvidia() -> Nvidia:
    """Return GPUs and driver. Never raises and prints nothing; a missing driver is in `problem`."""
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
    """Return GPUs and driver from loaded libraries. Without nvml, driver and clocks are unknown.

    Free memory is unknown too.
    """
    driver = _driver_version(nvml) if nvml is not None else None
    cuda_version, count = ctypes.c_int(), ctypes.c_int()
    try:
        _ask(cuda, "cuInit", 0)
        _ask(cuda, "cuDriverGetVersion", ctypes.byref(cuda_version))
        _ask(cuda, "cuDeviceGetCount", ctypes.byref(count))
        gpus = tuple(_read_gpu(cuda, nvml, i) for i in range(count.value))
    except _NvidiaError as error:
        return Nvidia(driver=driver, problem=str(error))
    served = f"{cuda_version.value // 1000}.{cuda_version.value % 1000 // 10}"
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
    # NVML counts all GPUs, CUDA only the visible ones; the bus address identifies a GPU in both
    _ask(cuda, "cuDeviceGetPCIBusId", bus, len(bus), device)
    values = _nvml_values(nvml, bus.value) if nvml is not None else (None, None, None, None)
    capability = (major.value, minor.value)
    return Gpu(name.value.decode(errors="replace"), capability, total.value, *values)


def _ask(cuda: Any, call: str, *arguments: Any) -> None:
    code = getattr(cuda, call)(*arguments)
    if code:
        raise _NvidiaError(f"the driver call {call} failed with error {code}")


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
    return text.value.decode(errors="replace")


def _nvml_values(nvml: Any, bus_id: bytes) -> tuple[int | None, int | None, int | None, int | None]:
    """Return (free bytes, SM MHz, maximum SM MHz, memory MHz) without a CUDA context.

    A value is None when NVML does not report it, as for a MIG partition.
    """
    handle, memory, mhz = ctypes.c_void_p(), _Memory(), ctypes.c_uint()
    if nvml.nvmlDeviceGetHandleByPciBusId_v2(bus_id, ctypes.byref(handle)):
        return None, None, None, None
    refused = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    free = None if refused else int(memory.free)

    def clock(call: str, kind: int) -> int | None:
        found = getattr(nvml, call, None)
        return None if found is None or found(handle, kind, ctypes.byref(mhz)) else mhz.value

    sm, most = clock("nvmlDeviceGetClockInfo", _SM), clock("nvmlDeviceGetMaxClockInfo", _SM)
    return free, sm, most, clock("nvmlDeviceGetClockInfo", _MEMORY)
