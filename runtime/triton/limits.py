"""Check whether a repository will work on its server, from the manifest and this machine.

Triton's own backends have fewer settings than a session of this package. A bundle is refused if a
missing setting would change the masks silently.
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
    """Divide the cores by the instances. Raises SaveDeployError for more threads than cores."""
    cores, instances = options.cores or allowed_cores(), options.instances
    threads = options.threads or max(1, cores // instances)
    if not options.gpus and instances * threads > cores:
        raise SaveDeployError(
            "more threads than cores",
            got=f"{instances} instances of {threads} threads on {cores} cores",
            expected="instances x threads up to the cores; more threads slow every response",
            hint="--cores N sets the cores of another machine",
        )
    return Share(cores, threads)


def check_bundle(options: TritonOptions, manifest: Manifest) -> None:
    """Raise an error if Triton cannot run the bundle, or would produce other masks."""
    if (batch := manifest.model.inputs[0].shape[0]) != 1:
        raise BundleError(
            "this bundle computes several frames per call",
            got=f"a batch of {batch}",
            expected="one frame per request",
            hint="save-export --batch 1, or --batch 1,8 for more in one call",
        )
    if not manifest.golden:
        raise BundleError(
            "bundle without golden samples",
            got=str(options.bundle),
            expected="samples for the warm-up of the models",
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
    """Yield notes on the repository for the user."""
    quantized = Precision.parse(manifest.precision["precision"]).quantized
    large_int8 = quantized == "int8" and not manifest.small_weights
    if options.engine == "onnxruntime" and large_int8 and not options.gpus:
        yield (
            "INT8 with 8-bit weights on Triton's ONNX Runtime needs a CPU with VNNI, as this one has: "
            "on other CPUs sums saturate and masks differ"
        )
    if options.engine == "openvino":
        yield (
            "Triton's OpenVINO backend has no setting for f32: on a CPU with bf16 instructions "
            "masks differ"
        )
    if manifest.batches and options.engine == "tensorrt":
        yield "save_batch is left out: a plan is of one batch"
    if options.engine == "tensorrt":
        engine = plan_of(manifest)
        yield f"{PLAN} runs with TensorRT {engine['library_version']}, on {_targets(engine)}"
        if engine.get("version_compatible"):
            yield "start the server with --backend-config=tensorrt,version-compatible=true"


def _onnxruntime(options: TritonOptions, manifest: Manifest) -> None:
    quantized = Precision.parse(manifest.precision["precision"]).quantized
    large_int8 = quantized == "int8" and not manifest.small_weights
    if large_int8 and not options.gpus and not has_int8_dot_product():
        raise BackendError(
            "INT8 would produce other masks on Triton's ONNX Runtime",
            got="a CPU without VNNI, where sums of 8-bit products saturate",
            expected="7-bit weights (save-export --int8 --weight-bits 7): Triton's backend cannot set "
            "session.x64quantprecision",
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
    """Return the bundle's engine entry for TensorRT. Raises BundleError without one."""
    for engine in manifest.engines:
        if engine.get("library") == "tensorrt" and engine["file"] in manifest.files:
            return engine
    others = ", ".join(str(engine.get("library")) for engine in manifest.engines)
    raise BundleError(
        "no TensorRT plan in this bundle",
        got=others or "no engine",
        expected=PLAN,
        hint="save-build BUNDLE --library tensorrt, with the TensorRT of the server's container",
    )


def _tensorrt(options: TritonOptions, manifest: Manifest) -> None:
    engine = plan_of(manifest)
    built, server = engine.get("library_version"), options.tensorrt
    if built is None:
        raise BundleError(
            "the plan cannot be matched to a server", got=f"{engine['file']} of an unknown TensorRT",
            expected="library_version in its entry of manifest.json", hint="save-build BUNDLE again",
        )  # fmt: skip
    if engine.get("options", {}).get("strip_weights"):
        raise BundleError(
            "Triton cannot run a plan without weights", got=engine["file"], expected="weights in it",
            hint="save-build BUNDLE without --strip-weights",
        )  # fmt: skip
    if server and not runs_with(engine, server):
        raise BundleError(
            "the plan was built with another TensorRT than the server's",
            got=f"built with {built}",
            expected=f"{server[:40]}: only the version that built a plan can read it, such as 10.13.3",
            hint="save-build BUNDLE in that container, or --engine onnxruntime",
        )


def _targets(engine: dict[str, Any]) -> str:
    return ", ".join(engine.get("targets") or ()) or str(
        engine.get("gpu") or "the GPU it was built on"
    )
