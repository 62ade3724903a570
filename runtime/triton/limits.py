"""Will a repository work where it goes? Told from the manifest and this machine before it is written.

Triton's own backends take fewer settings than a session of this package: what cannot be set there and
would change the masks without a word is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from save_deploy.bundle import Manifest
from save_deploy.errors import BackendError, BundleError, SaveDeployError
from save_deploy.machine import allowed_cores, cpu_flags, has_int8_dot_product
from save_deploy.precision import Precision
from save_deploy.runtime.engine_check import runs_with
from save_deploy.runtime.triton.options import TritonOptions

PLAN = "model.plan"
_PYTHON = "--engine python sets it itself"
_BF16 = frozenset(("avx512_bf16", "amx_bf16", "bf16"))


@dataclass(frozen=True)
class Share:
    """Cores of the server, and threads of each instance."""

    cores: int
    threads: int


def share_cores(options: TritonOptions) -> Share:
    """Raises SaveDeployError where instances of so many threads are more than the cores."""
    cores, instances = options.cores or allowed_cores(), options.instances
    threads = options.threads or max(1, cores // instances)
    if not options.gpus and instances * threads > cores:
        raise SaveDeployError(
            "more threads than cores",
            got=f"{instances} instances of {threads} threads on {cores} cores",
            expected="instances x threads up to the cores: those above it make every answer later",
            hint="--cores N names the cores of another machine",
        )
    return Share(cores, threads)


def check_bundle(options: TritonOptions, manifest: Manifest) -> None:
    """Raise an error for what Triton would not run, or would run to other masks."""
    if (batch := manifest.model.inputs[0].shape[0]) != 1:
        raise BundleError(
            "this bundle computes several frames per call",
            got=f"a batch of {batch}",
            expected="one frame per request",
            hint="save-export --batch 1",
        )
    if not manifest.golden:
        raise BundleError(
            "bundle without golden samples",
            got=str(options.bundle),
            expected="samples that warm the models up",
            hint="export again with this version of save-deploy",
        )
    checks = {"onnxruntime": _onnxruntime, "openvino": _openvino, "tensorrt": _tensorrt}
    if check := checks.get(options.engine):
        check(options, manifest)
    elif options.gpus:
        raise SaveDeployError(
            "the python engine runs on the CPU",
            got=f"--gpus {','.join(map(str, options.gpus))}",
            expected="no GPUs",
            hint="--engine onnxruntime or tensorrt runs on GPUs",
        )


def notes(options: TritonOptions, manifest: Manifest) -> Iterator[str]:
    """What a user should know of this repository."""
    quantized = Precision.parse(manifest.precision["precision"]).quantized
    if options.engine == "onnxruntime" and quantized == "int8" and not options.gpus:
        yield (
            "INT8 on Triton's ONNX Runtime needs a CPU with VNNI, as this one has: on others its "
            "sums saturate, and masks differ"
        )
    if options.engine == "openvino":
        yield (
            "Triton's OpenVINO backend cannot be told to compute in f32: on a CPU with bf16 "
            "instructions masks differ"
        )
    if options.engine == "tensorrt":
        engine = plan_of(manifest)
        yield f"{PLAN} runs with TensorRT {engine['library_version']}, on {_targets(engine)}"
        if engine.get("version_compatible"):
            yield "start the server with --backend-config=tensorrt,version-compatible=true"


def _onnxruntime(options: TritonOptions, manifest: Manifest) -> None:
    quantized = Precision.parse(manifest.precision["precision"]).quantized
    if quantized == "int8" and not options.gpus and not has_int8_dot_product():
        raise BackendError(
            "INT8 would give other masks on Triton's ONNX Runtime",
            got="a CPU without VNNI, where sums of 8-bit products saturate",
            expected="session.x64quantprecision, which Triton's backend cannot set",
            hint=_PYTHON,
        )


def _openvino(options: TritonOptions, manifest: Manifest) -> None:
    if options.gpus:
        raise SaveDeployError(
            "Triton's OpenVINO backend runs on the CPU", got="--gpus", expected="no GPUs"
        )
    if found := sorted(_BF16 & cpu_flags()):
        raise BackendError(
            "OpenVINO would compute in bf16 here, which no bundle uses",
            got=f"a CPU with {', '.join(found)}",
            expected="the hint f32, which Triton's OpenVINO backend cannot set",
            hint=_PYTHON,
        )


def plan_of(manifest: Manifest) -> dict[str, Any]:
    """The bundle's engine for TensorRT. Raises BundleError where it has none."""
    for engine in manifest.engines:
        if engine.get("library") == "tensorrt" and engine["file"] in manifest.files:
            return engine
    others = ", ".join(str(engine.get("library")) for engine in manifest.engines)
    raise BundleError(
        "no plan of TensorRT in this bundle",
        got=others or "no engine",
        expected=PLAN,
        hint="save-build BUNDLE --library tensorrt, with the TensorRT of the server's container",
    )


def _tensorrt(options: TritonOptions, manifest: Manifest) -> None:
    engine = plan_of(manifest)
    built, server = engine["library_version"], options.tensorrt
    if engine.get("options", {}).get("strip_weights"):
        raise BundleError(
            "Triton cannot run a plan without weights", got=engine["file"], expected="one with them",
            hint="save-build BUNDLE without --strip-weights",
        )  # fmt: skip
    if server and not runs_with(engine, server):
        raise BundleError(
            "the plan is of another TensorRT than the server's",
            got=f"built with {built}",
            expected=f"{server[:40]}: a plan is read by the version that built it, such as 10.13.3",
            hint="save-build BUNDLE in that container, or --engine onnxruntime",
        )


def _targets(engine: dict[str, Any]) -> str:
    return ", ".join(engine.get("targets") or ()) or str(
        engine.get("gpu") or "the GPU it was built on"
    )
