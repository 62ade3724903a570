"""One interface to TensorRT 10, TensorRT 11 and TensorRT-RTX.

Flags are looked up by name because their numbers differ between versions. The network is always
strongly typed, so the graph alone determines precision. A test compares every name used here with
the API tables of the three libraries.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from save_deploy.errors import BackendError, ExportError
from save_deploy.export.engine.targets import RTX_TARGETS
from save_deploy.fields import check_word
from save_deploy.files import write_bytes
from save_deploy.machine import Gpu, read_nvidia

ENGINES = ("auto", "none", "tensorrt", "rtx")  # values of `save-export --engine`
OLDEST = (10, 8)
_INSTALL = {
    "tensorrt_rtx": 'pip install "save-deploy[rtx]"',
    "tensorrt": "pip install tensorrt --extra-index-url https://pypi.nvidia.com",
}
_MIB = 2**20


def has_driver() -> bool:
    """Return True when the NVIDIA driver library can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def choose(library: str, *, targets: bool = False) -> str:
    """Return the module to use for auto, tensorrt or rtx.

    auto is full TensorRT when it and a driver are installed and no targets are given, otherwise
    RTX.
    Raises BackendError for a missing package, for full TensorRT without a driver, and for auto when
    only RTX is installed and it does not support the GPU of this machine.
    """
    installed = {name: importlib.util.find_spec(name) is not None for name in _INSTALL}
    asked = library
    if library == "auto":
        full = installed["tensorrt"] and has_driver() and not targets
        library = "tensorrt" if full else "rtx"
    module = "tensorrt_rtx" if library == "rtx" else "tensorrt"
    if not installed[module]:
        raise BackendError(
            f"{module} is not installed",
            got="no such package",
            expected=f"the package {module}",
            hint=_INSTALL[module],
        )
    if module == "tensorrt" and not has_driver():
        raise BackendError(
            "full TensorRT builds only on the target GPU",
            got="no NVIDIA driver (libcuda.so.1)",
            expected="a machine with that GPU",
            hint="build there, or add --library rtx: TensorRT-RTX builds without a GPU",
        )
    if asked == "auto" and module == "tensorrt_rtx" and not targets:
        _require_code_for(read_nvidia().gpus)
    return module


def _require_code_for(gpus: tuple[Gpu, ...]) -> None:
    """Raise BackendError when TensorRT-RTX does not support the GPU of this machine."""
    if gpus and gpus[0].target not in RTX_TARGETS:
        raise BackendError(
            "TensorRT-RTX does not support the GPU of this machine",
            got=f"{gpus[0].name} ({gpus[0].target})",
            expected=", ".join(RTX_TARGETS),
            hint=f"{_INSTALL['tensorrt']}; or name the target GPU: --for 'RTX 4090'",
        )


def engine_for(asked: str) -> str:
    """Return the library that an export builds an engine with, "" for none.

    asked: auto, none, tensorrt or rtx. auto builds an engine when this machine has a GPU and a
        library that supports it.
    Raises ExportError for another name, and BackendError when a requested library cannot build.
    """
    check_word("engine", asked, ENGINES, ExportError)
    if asked == "none":
        return ""
    if asked != "auto":
        choose(asked)
        return asked
    gpus = read_nvidia().gpus
    if not gpus:
        return ""
    if importlib.util.find_spec("tensorrt") is not None:
        return "tensorrt"
    rtx = importlib.util.find_spec("tensorrt_rtx") is not None
    return "rtx" if rtx and gpus[0].target in RTX_TARGETS else ""


def why_no_engine(asked: str) -> str:
    """Return why auto builds no engine for the GPU of this machine and how to change that.

    "" when an engine is built, and without a GPU.
    """
    gpus = read_nvidia().gpus
    if asked != "auto" or not gpus or engine_for(asked):
        return ""
    return f"none for {gpus[0].name} ({gpus[0].target}): {_INSTALL['tensorrt']}, then save-build"


def version_of(module: str) -> str:
    """Return the version of an installed library.

    Raises BackendError when it is too old or broken.
    """
    return str(import_library(module).__version__)


def import_library(module: str) -> Any:
    """Import the module. Raises BackendError with the pip command."""
    try:
        trt = importlib.import_module(module)
    except ImportError as error:
        raise BackendError(
            f"{module} cannot be loaded",
            got=str(error),
            expected=f"a working package {module}",
            hint=_INSTALL[module],
        ) from error
    found = tuple(int(n) for n in re.findall(r"\d+", trt.__version__)[:2])
    if module == "tensorrt" and found < OLDEST:
        raise BackendError(
            "TensorRT is too old",
            got=str(trt.__version__),
            expected=f"{OLDEST[0]}.{OLDEST[1]} or newer",
            hint=_INSTALL[module],
        )
    return trt


def named(enum: Any, name: str) -> Any:
    """Return a member of an enumeration. Raises ExportError when this version lacks it."""
    member = getattr(enum, name, None)
    if member is None:
        raise ExportError(
            f"this version of TensorRT has no {name}",
            got=f"{enum.__module__}.{enum.__name__}",
            expected="a version that has it",
            hint="omit the option",
        )
    return member


def make_logger(trt: Any, write: Callable[[str, str], None]) -> Any:
    """Return a TensorRT logger that calls write(severity, text) for every message."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            write(severity.name, text)

    return Logger()


def parse(trt: Any, builder: Any, logger: Any, onnx: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Parse an ONNX file to a strongly typed network.

    Returns (network, parser) and the parser's errors, empty on success. The file is parsed by path
    so that TensorRT finds external weights.
    """
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    errors = []
    if not parser.parse_from_file(str(onnx)):
        for i in range(parser.num_errors):
            error = parser.get_error(i)
            errors.append(
                {
                    "code": error.code().name,
                    "text": error.desc(),
                    "node": error.node_name(),
                    "operator": error.node_operator(),
                }
            )
        errors = errors or [{"code": "UNKNOWN", "text": "", "node": "", "operator": ""}]
    return (network, parser), errors  # the network is only valid while the parser exists


def make_config(trt: Any, builder: Any, options: dict[str, Any]) -> Any:
    """Return the builder configuration for BuildOptions.to_dict() of resolved options."""
    config = builder.create_builder_config()
    # TF32 is on by default: it rounds the operands of FP32 MatMuls to 10 bits
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options["workspace_mib"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace_mib"] * _MIB)
    if options["optimization_level"] is not None:
        config.builder_optimization_level = options["optimization_level"]
    if options["strip_weights"]:
        config.set_flag(named(trt.BuilderFlag, "STRIP_PLAN"))
    if options["refit"]:
        config.set_flag(trt.BuilderFlag.REFIT)
    elif options[
        "strip_weights"
    ]:  # the same weights are restored, so optimizations that depend on their values stay valid
        config.set_flag(named(trt.BuilderFlag, "REFIT_IDENTICAL"))
    if options["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options["hardware_compatibility"] != "none":
        level = options["hardware_compatibility"].upper()
        config.hardware_compatibility_level = named(trt.HardwareCompatibilityLevel, level)
    if hasattr(config, "num_compute_capabilities"):  # RTX only
        config.num_compute_capabilities = len(options["targets"])
        for i, target in enumerate(options["targets"]):
            config.set_compute_capability(named(trt.ComputeCapability, target), i)
    return config


def use_timing_cache(config: Any, path: Path) -> Any:
    """Load a timing cache from a file (full TensorRT). A missing file is an empty cache."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, False)
    return cache


def save_timing_cache(cache: Any, path: Path) -> None:
    """Write the timing cache atomically. Raises OutputError."""
    write_bytes(path, bytes(cache.serialize()), what="the timing cache")


def build_plan(builder: Any, network: Any, config: Any) -> tuple[Any, float]:
    """Return the serialized engine, None when the builder failed, and the build time in seconds."""
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    return plan, time.perf_counter() - started


def inspect_plan(trt: Any, logger: Any, plan: Any) -> str:
    """Return the JSON of the engine inspector, "" when the engine cannot be loaded (no GPU).

    Written from the documentation; not tested on a GPU.
    """
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
