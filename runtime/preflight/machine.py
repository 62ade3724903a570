"""What this machine offers an engine: system, GPUs, driver and the libraries that really import."""

from __future__ import annotations

import contextlib
import importlib
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from save_deploy.machine import Gpu, read_nvidia

__all__ = ["CUDA_BINDINGS", "LIBRARIES", "Gpu", "Machine", "probe_machine", "system_name"]

CUDA_BINDINGS = "cuda.bindings"
LIBRARIES = ("tensorrt", "tensorrt_rtx", CUDA_BINDINGS)
# importing the module is the proof; the version stands in its package
_PROOF = {CUDA_BINDINGS: "cuda.bindings.runtime"}
_CUDA_MAJORS = ("13", "12")


@dataclass(frozen=True)
class Machine:
    """os: `linux-x86_64`; driver, cuda: versions or None; problem: why there is no usable GPU.
    libraries: importable ones -> version; broken: the others -> why they do not import. library_cuda:
    CUDA a library was built for, `12` or `13`, where its package tells.
    """

    os: str
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    library_cuda: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe_machine(libraries: Iterable[str] = LIBRARIES) -> Machine:
    """Ask the driver and import the libraries; well under a second, silent, raises nothing."""
    found, broken = {}, {}
    for name in libraries:
        try:
            importlib.import_module(_PROOF.get(name, name))
            found[name] = str(importlib.import_module(name).__version__)
        except Exception as error:  # a half-installed library raises whatever it likes
            broken[name] = str(error).splitlines()[0] if str(error) else repr(error)
    nvidia = read_nvidia()
    return Machine(
        os=system_name(),
        gpus=nvidia.gpus,
        driver=nvidia.driver,
        cuda=nvidia.cuda,
        problem=nvidia.problem,
        libraries=found,
        broken=broken,
        library_cuda={name: major for name in found if (major := _cuda_of(name, found[name]))},
    )


def _cuda_of(library: str, version: str) -> str:
    """Of the package that holds the library (tensorrt_rtx_cu12 ...); `` when none does.

    Two of them may be installed: the one of the imported version counts.
    """
    if library == CUDA_BINDINGS:  # its releases are numbered like CUDA's
        return version.split(".")[0]
    for major in _CUDA_MAJORS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            if metadata.version(f"{library}_cu{major}") == version:
                return major
    return ""


def system_name() -> str:
    """linux-x86_64, linux-aarch64, windows-x86_64, darwin-aarch64."""
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    machine = platform.machine().lower()
    return f"{system}-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine) }"
