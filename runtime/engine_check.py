"""Check whether an engine of a bundle can run on this machine, before its library reads the file.

Five rules:

os        the engine was built on this operating system
library   its library and cuda-bindings can be imported
version   the library is the version that built the engine, or accepts engines of that version
GPU       a GPU exists and has a compute capability the engine was built for
hashes    the file matches the manifest and was built from the bundle's graph

The C++ runtime applies the same rules with the same texts (cpp/src/engine_check.cpp).
"""

from __future__ import annotations

import functools
import importlib
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from save_deploy.bundle import FileRecord, sha256_of
from save_deploy.errors import BackendError, BundleError
from save_deploy.fields import Fields
from save_deploy.machine import Gpu, read_nvidia

GRAPH = "model.onnx"
CUDA_BINDINGS = "cuda.bindings"
LIBRARIES = ("tensorrt", "tensorrt_rtx", CUDA_BINDINGS)
# the first module must import; its package has the version
_PROOF = {CUDA_BINDINGS: "cuda.bindings.runtime"}
_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_INSTALL = {
    "tensorrt": 'pip install tensorrt "save-deploy[cuda]"',
    "tensorrt_rtx": 'pip install "save-deploy[rtx,cuda]"',
}
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/: engines are not portable between releases
# https://docs.nvidia.com/deeplearning/tensorrt/latest/: version compatibility is an option of the build
_WHY_VERSION = {
    "tensorrt": "a TensorRT engine runs on the version that built it, and on newer ones when it was "
    "built version-compatible",
    "tensorrt_rtx": "engines are not compatible between releases of TensorRT-RTX unless its own "
    "validity check accepts them",
}
_LEVELS = ("none", "same_compute_capability", "ampere_plus")
_ACCEPTED = ("VALID", "SUBOPTIMAL")
_COPY = "copy the bundle again, or build the engine again"

RawEntry = Mapping[str, Any]


@dataclass(frozen=True)
class Machine:
    """Properties of a machine that the rules use.

    os: for example `linux-x86_64`.
    driver, cuda: versions; None if unknown.
    problem: why no GPU is usable; "" if one is.
    libraries: importable libraries -> version.
    broken: other libraries -> import error.
    """

    os: str
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe_machine(libraries: Iterable[str] = LIBRARIES) -> Machine:
    """Query the driver and import the libraries. Prints nothing and raises nothing."""
    found, broken = {}, {}
    for name in libraries:
        try:
            importlib.import_module(_PROOF.get(name, name))
            found[name] = str(importlib.import_module(name).__version__)
        except Exception as error:  # a half-installed library may raise anything
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
    )


def system_name() -> str:
    """Return linux-x86_64, linux-aarch64, windows-x86_64 or darwin-aarch64."""
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    machine = platform.machine().lower()
    return f"{system}-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine) }"


@dataclass(frozen=True)
class Refusal:
    """One reason why an engine cannot run here.

    rule: name of the rule, for programs. The other fields are the parts of an error text.
    """

    rule: str
    what: str
    got: str
    expected: str
    cure: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def refusal_error(where: str, refusals: Sequence[Refusal]) -> BackendError:
    """Return the first refusal as an error of `where` (exit 3), the others as lines of its hint."""
    first, *rest = refusals
    more = "".join(f"\nalso: {r.what} ({r.got}); {r.cure}" for r in rest)
    return BackendError(
        f"{where}: {first.what}",
        got=first.got,
        expected=first.expected,
        hint=first.cure + more,
    )


def engine_refusals(
    values: RawEntry,
    folder: Path,
    files: Mapping[str, FileRecord],
    machine: Machine,
    *,
    hashed: bool = False,
) -> list[Refusal]:
    """Return every reason why the engine of a manifest entry cannot run here; [] if it can.

    files: file records of the manifest.
    hashed: the files were already compared with their sha256.
    Raises BundleError for an entry that cannot be read.
    """
    entry = _Entry.of(values)
    found = machine_refusals(values, machine)
    if [r.rule for r in found] == ["version"]:
        validity, _ = engine_validity(entry.library, folder / entry.file)
        found = [] if validity in _ACCEPTED else found
    return [*found, *_hashes(entry, folder, files, hashed)]


def machine_refusals(values: RawEntry, machine: Machine) -> list[Refusal]:
    """Apply every rule except the hashes; no file is read. Raises BundleError."""
    entry = _Entry.of(values)
    return [
        *_system(entry, machine),
        *_imports(entry, machine),
        *_version(entry, machine),
        *_gpu(entry, machine),
    ]


def estimated_bytes(values: RawEntry) -> int:
    """Estimate GPU memory of weights and activations, in bytes, without the CUDA context.

    If the builder reported 0, the file size replaces the weights and the weights replace the
    activations. Raises BundleError.
    """
    fields = _fields(values)
    size = {k: fields.integer(f"{k}_bytes", 0) for k in ("engine", "weights", "activation")}
    weights = size["weights"] or size["engine"]
    return weights + (size["activation"] or weights)


def engine_validity(library: str, path: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return the library's verdict on an engine's header and its diagnostics.

    The verdict is VALID, SUBOPTIMAL or INVALID; (None, ()) if the library has no such check (full
    TensorRT) or the file is missing. Not run on a GPU yet; without one the verdict is INVALID
    without diagnostics.
    """
    trt = importlib.import_module(library)
    if not hasattr(trt.Runtime, "get_engine_validity") or not path.is_file():
        return None, ()
    runtime = trt.Runtime(last_error_logger(library))
    with path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    validity, diagnostics = runtime.get_engine_validity(header)
    flags = trt.EngineInvalidityDiagnostics.__members__.items()
    found = tuple(name for name, flag in flags if int(diagnostics) & int(flag))
    return validity.name, found


@functools.cache
def last_error_logger(library: str) -> Any:
    """Return this process's logger (TensorRT allows only one). It keeps the last error in `last`."""
    trt = importlib.import_module(library)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            # without a driver TensorRT logs a second line, from its own error handling
            if int(severity) <= int(trt.ILogger.Severity.ERROR) and "catchCudaError" not in message:
                self.last = message.splitlines()[0] if message else self.last

    return Logger()


@dataclass(frozen=True)
class _Entry:
    """Fields of a manifest entry that the rules read."""

    file: str
    library: str
    library_version: str
    version_compatible: bool
    hardware_compatibility: str
    targets: tuple[str, ...]
    os: str
    gpu: str | None
    onnx_sha256: str
    onnx_data_sha256: str | None

    @classmethod
    def of(cls, values: RawEntry) -> _Entry:
        """Read an entry. Raises BundleError with the name of the key that cannot be read."""
        fields = _fields(values)
        version = fields.string("library_version")
        if not _numbers(version):
            raise fields.error("library_version", got=version, expected="numbers such as 10.13.0")
        return cls(
            file=fields.string("file"),
            library=fields.string("library", tuple(_NAMES)),
            library_version=version,
            version_compatible=fields.boolean("version_compatible"),
            hardware_compatibility=fields.string("hardware_compatibility", _LEVELS),
            targets=fields.strings("targets"),
            os=fields.string("os"),
            gpu=fields.string("gpu", default=None),
            onnx_sha256=fields.string("onnx_sha256"),
            onnx_data_sha256=fields.string("onnx_data_sha256", default=None),
        )


def _fields(values: RawEntry) -> Fields:
    """Return the entry's fields. null has the meaning of a missing key."""
    name = values.get("file", "an engine")
    return Fields(
        {key: value for key, value in values.items() if value is not None},
        f"manifest entry of {name} cannot be read",
        error=BundleError,
        hint="build the engine again",
    )


def _system(entry: _Entry, machine: Machine) -> Iterator[Refusal]:
    if entry.os != machine.os:
        yield Refusal(
            "os",
            "engine of another operating system",
            machine.os,
            entry.os,
            f"build the engine on {machine.os}",
        )


def _imports(entry: _Entry, machine: Machine) -> Iterator[Refusal]:
    if CUDA_BINDINGS not in machine.libraries:
        yield Refusal(
            "cuda_bindings",
            "cuda-bindings cannot be imported",
            machine.broken.get(CUDA_BINDINGS, "not installed"),
            f"the Python package {CUDA_BINDINGS}",
            'pip install "save-deploy[cuda]"',
        )
    if entry.library not in machine.libraries:
        yield Refusal(
            "library",
            f"{_NAMES[entry.library]} cannot be imported",
            machine.broken.get(entry.library, "not installed"),
            f"{entry.library} {entry.library_version}",
            _INSTALL[entry.library],
        )


def _version(entry: _Entry, machine: Machine) -> Iterator[Refusal]:
    library, here = entry.library, machine.libraries.get(entry.library)
    if here is not None and not _runs_version(entry, here):
        yield Refusal(
            "version",
            f"engine of another {_NAMES[library]}",
            f"{library} {here}",
            f"{library} {entry.library_version} ({_WHY_VERSION[library]})",
            f"build the engine again with {here}, or install {entry.library_version}",
        )


def runs_with(values: RawEntry, version: str) -> bool:
    """Return True if this version of the library can read the entry's engine. Raises BundleError."""
    return _runs_version(_Entry.of(values), version)


def _runs_version(entry: _Entry, here: str) -> bool:
    built, found = _numbers(entry.library_version), _numbers(here)
    n = min(len(built), len(found))  # some releases omit the build number
    if n >= 3 and built[:n] == found[:n]:
        return True
    return entry.library == "tensorrt" and entry.version_compatible and found >= built


def _gpu(entry: _Entry, machine: Machine) -> Iterator[Refusal]:
    targets = ", ".join(entry.targets)
    if not machine.gpus:
        yield Refusal(
            "gpu",
            "no usable NVIDIA GPU",
            machine.problem or "none",
            f"a GPU of {targets} with its driver",
            "install NVIDIA's driver, or use a CPU backend: --backend onnxruntime",
        )
        return
    gpu = machine.gpus[0]
    if entry.hardware_compatibility == "ampere_plus":
        if gpu.compute_capability < (8, 0):
            yield Refusal(
                "compute_capability",
                "GPU is older than the engine allows",
                f"{gpu.name} ({gpu.target})",
                "compute capability 8.0 or newer (ampere_plus)",
                "build the engine on this GPU",
            )
    elif gpu.target not in entry.targets:
        yield Refusal(
            "compute_capability",
            "engine of another compute capability",
            f"{gpu.name} ({gpu.target})",
            targets,
            f"build the engine again for {gpu.target}",
        )
    elif entry.hardware_compatibility == "none" and entry.gpu not in (None, gpu.name):
        yield Refusal(
            "gpu_model",
            "engine of another GPU model",
            gpu.name,
            f"{entry.gpu} (built with hardware_compatibility none)",
            "build the engine on this GPU, or with hardware_compatibility same_compute_capability",
        )


def _hashes(
    entry: _Entry, folder: Path, files: Mapping[str, FileRecord], hashed: bool
) -> Iterator[Refusal]:
    weights = files.get(f"{GRAPH}.data")
    graph = (files[GRAPH].sha256, weights.sha256 if weights else None)
    built_from = (entry.onnx_sha256, entry.onnx_data_sha256)
    if graph != built_from:
        yield Refusal(
            "onnx",
            f"engine of another {GRAPH}",
            f"built from {_short(*built_from)}",
            _short(*graph),
            "build the engine again",
        )
    path, record = folder / entry.file, files.get(entry.file)
    if record is None or not path.is_file():
        missing_in = "the files of manifest.json" if record is None else str(folder)
        yield Refusal(
            "file",
            "engine file is missing",
            f"no {entry.file} in {missing_in}",
            f"{entry.file} beside manifest.json and listed there",
            _COPY,
        )
    elif not hashed and sha256_of(path) != record.sha256:
        yield Refusal(
            "sha256",
            "engine file was altered",
            f"another sha256 of {entry.file}",
            f"{record.sha256[:12]}...",
            _COPY,
        )


def _short(graph: str, weights: str | None) -> str:
    return f"{graph[:12]}..." + (f" with weights {weights[:12]}..." if weights else "")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers: `10.13.0.35` -> (10, 13, 0, 35), `13.0.0rc1` -> (13, 0, 0)."""
    found = re.match(r"\d{1,9}(?:\.\d{1,9})*(?!\d)", version, re.ASCII)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
