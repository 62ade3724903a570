"""Options of TensorRT's builder. Precision is in the graph, which is always strongly typed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from save_deploy.errors import ExportError
from save_deploy.export.engine.targets import DEFAULT_TARGETS, FP8_TARGETS, resolve
from save_deploy.fields import check_word
from save_deploy.options import option

if TYPE_CHECKING:
    from save_deploy.export.engine.graph import GraphFacts

LIBRARIES = {"auto": "", "tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
BUILDER = "Builder"
COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of an engine build.

    library: auto, tensorrt or rtx.
    targets: GPUs of an RTX engine, by compute capability or name; empty for all but SM75.
    workspace_mib: limit of scratch memory while building.
    timing_cache, hardware_compatibility, version_compatible: full TensorRT only.
    strip_weights: leave the weights out of the engine.
    refit: allow later replacement of the weights.
    """

    library: str = option(
        "--library", default="auto",
        help="tensorrt, rtx, or auto: tensorrt where it and a driver are installed.",
    )  # fmt: skip
    targets: tuple[str, ...] = option(
        "--for", default=(), metavar="GPU",
        help="GPU of an RTX engine, by name or number: L4, 'RTX 4090', 8.6 (repeatable). Default: all "
        "but Turing.",
    )  # fmt: skip
    workspace_mib: int | None = option(
        "--workspace", panel=BUILDER, default=None, metavar="MIB",
        help="Limit of scratch memory while building.",
    )  # fmt: skip
    optimization_level: int | None = option(
        "--optimization-level", panel=BUILDER, default=None,
        help="0 builds fastest, 5 optimizes most. Default: 3.",
    )  # fmt: skip
    timing_cache: Path | None = option(
        "--timing-cache", panel=BUILDER, default=None,
        help="Keep measured timings in this file (tensorrt).",
    )  # fmt: skip
    hardware_compatibility: str = option(
        "--hardware-compatibility", panel=BUILDER, default="none",
        help="none, ampere_plus or same_compute_capability (tensorrt).",
    )  # fmt: skip
    version_compatible: bool = option(
        "--version-compatible", panel=BUILDER, default=False,
        help="Build an engine that also runs on later versions (tensorrt).",
    )  # fmt: skip
    strip_weights: bool = option(
        "--strip-weights", panel=BUILDER, default=False,
        help="Omit the weights from the engine and read them from model.onnx when loading "
        "(Python only; needs a driver to build; not tested on a GPU).",
    )  # fmt: skip
    refit: bool = option(
        "--refit", panel=BUILDER, default=False,
        help="Allow the weights of the engine to be replaced later (needs a driver).",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise ExportError for a value that no library accepts."""
        check_word("library", self.library, LIBRARIES, ExportError)
        how = self.hardware_compatibility
        check_word("hardware compatibility", how, COMPATIBILITY, ExportError)
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ExportError("workspace is too small", got=f"{self.workspace_mib} MiB",
                              expected="at least 1 MiB", hint="omit --workspace")  # fmt: skip
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ExportError("unknown optimization level", got=str(self.optimization_level),
                              expected="0 (fast build) to 5 (thorough)",
                              hint="omit --optimization-level: the default is 3")  # fmt: skip
        given = tuple(name for text in self.targets for name in text.split(","))
        object.__setattr__(self, "targets", resolve(given))

    def to_dict(self) -> dict[str, Any]:
        return {
            "library": self.library,
            "targets": list(self.targets),
            "workspace_mib": self.workspace_mib,
            "optimization_level": self.optimization_level,
            "timing_cache": self.timing_cache.name if self.timing_cache else None,
            "hardware_compatibility": self.hardware_compatibility,
            "version_compatible": self.version_compatible,
            "strip_weights": self.strip_weights,
            "refit": self.refit,
        }

    def fitted(self, library: str, facts: GraphFacts, *, driver: bool) -> BuildOptions:
        """Return the options resolved for a library and a graph, with targets filled in.

        library: tensorrt or tensorrt_rtx.
        driver: whether libcuda is on this machine.
        Raises ExportError for options that the library or the graph does not support.
        """
        short = "rtx" if library == "tensorrt_rtx" else "tensorrt"
        if short == "tensorrt":
            if self.targets:
                raise ExportError(
                    "full TensorRT builds for the GPU of this machine",
                    got=f"--for {' '.join(self.targets)}",
                    expected="no target",
                    hint="omit --for, or add --library rtx",
                )
            return replace(self, library=short)
        self._check_rtx(driver)
        targets = self.targets or (FP8_TARGETS if facts.fp8 else DEFAULT_TARGETS)
        if facts.fp8:
            _refuse([t for t in targets if t not in FP8_TARGETS], "FP8 needs SM89 or newer")
        if facts.count("bf16"):
            _refuse([t for t in targets if t == "SM75"], "Turing has no BF16")
        if facts.count("fp32"):
            _refuse(
                [t for t in targets if t == "SM75"],
                f"Turing: FP32 GEMM is not supported, and this graph has {facts.count('fp32')} "
                "FP32 MatMuls",
            )
        return replace(self, library=short, targets=targets)

    def _check_rtx(self, driver: bool) -> None:
        """Raise ExportError for options that RTX lacks, and for stripping without a driver."""
        full_only = {
            "--timing-cache": self.timing_cache is not None,
            "--hardware-compatibility": self.hardware_compatibility != "none",
            "--version-compatible": self.version_compatible,
        }
        asked = [name for name, given in full_only.items() if given]
        if asked:
            raise ExportError(
                "TensorRT-RTX has no such option",
                got=", ".join(asked),
                expected="--for GPU ... to choose where the engine runs",
                hint="omit it, or add --library tensorrt on a machine with a GPU",
            )
        if (self.strip_weights or self.refit) and not driver:
            raise ExportError(
                "stripped and refittable engines cannot be built here",
                got="no NVIDIA driver (libcuda.so.1)",
                expected="a machine with a driver: TensorRT-RTX 1.7 fails without one",
                hint="build without --strip-weights and --refit, or on a machine with a driver",
            )


def _refuse(targets: list[str], why: str) -> None:
    """Raise ExportError when there are targets that the graph cannot be built for."""
    if targets:
        raise ExportError(
            "this graph cannot be built for every target",
            got=f"{', '.join(targets)}: {why}",
            expected="targets that support the graph's data types",
            hint="omit these targets, or export the bundle in another precision",
        )
