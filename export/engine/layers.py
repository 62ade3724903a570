"""Kernels of an engine, read from a detailed build log or from the engine inspector.

With detailed profiling TensorRT ends a build with `Layers:` and one line per kernel: its name,
type, tensors, and the ONNX nodes it computes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

STAGE = "@"  # first character of a line in which the build process names its stage
LISTING = "Layers:"  # start of the message that lists the kernels
SYNCHRONIZATION = ("signal", "wait")
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: (?P<constants>.*?), )?Outputs: (?P<outputs>.*?), TacticName: (?P<tactic>[^,]*), "
    r".*?Metadata: ?(?P<metadata>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<dims>[\d,\s-]*)\].*?Datatype: (?P<dtype>\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")
_DTYPES = {"Half": "fp16", "Float": "fp32", "BFloat16": "bf16", "BF16": "bf16", "FP16": "fp16",
           "FP32": "fp32"}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One input or output of a kernel.

    dtype: fp32, fp16, bf16, or TensorRT's name in lower case (int8, fp8, uint8 ...).
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_matrix(self) -> bool:
        """True for a tensor with at least two dimensions above 1: not a scalar, scale or bias."""
        return sum(d > 1 for d in self.shape) >= 2


@dataclass(frozen=True)
class Kernel:
    """One kernel of the list.

    type: kgen (generated), gemm, runtime_fusion, correlation, deconv ...
    nodes: names of the ONNX nodes it computes.
    """

    name: str
    type: str
    tactic: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """Operations of a generated kernel.

        `__myl_ReshTranReshCast_0x..` -> Resh, Tran, Resh, Cast.
        """
        found = re.match(r"_*myl_([A-Za-z]+?)(?:_|$)", self.name)
        return tuple(re.findall(r"[A-Z][a-z]*", found[1])) if found else ()


@dataclass(frozen=True)
class BuildLog:
    """Contents of a build log.

    kernels: without signals and waits, which `synchronisations` counts.
    activation_bytes, weights_bytes: None when the log does not report them.
    """

    kernels: tuple[Kernel, ...]
    synchronisations: int
    activation_bytes: int | None
    weights_bytes: int | None
    warnings: tuple[str, ...]
    errors: tuple[str, ...]


# Harmless warnings of every build: no driver (an RTX build needs none), and features that a build
# without a GPU lacks.
_HARMLESS = re.compile(
    r"catchCudaError|cudaError 35|legacy CPU-only mode|CUDA lazy loading is not enabled|"
    r"timing cache"
)


def read_log(text: str) -> BuildLog:
    """Parse a log written by the worker: `[SEVERITY] message` lines and the list of kernels."""
    layers, memory = [], {}
    warnings: dict[str, None] = {}  # an ordered set
    errors: dict[str, None] = {}
    listing = False
    for line in text.splitlines():
        if line.startswith("["):
            severity, _, message = line[1:].partition("] ")
            listing = message.startswith(LISTING)
            if found := _MEMORY.search(message):
                memory[found[1]] = int(found[2])
            if severity in ("WARNING", "ERROR", "INTERNAL_ERROR") and not _HARMLESS.search(message):
                (warnings if severity == "WARNING" else errors)[message.strip()] = None
        elif listing and (kernel := _kernel(line)):
            layers.append(kernel)
    return BuildLog(
        kernels=tuple(k for k in layers if k.type not in SYNCHRONIZATION),
        synchronisations=sum(k.type in SYNCHRONIZATION for k in layers),
        activation_bytes=memory.get("Activation"),
        weights_bytes=memory.get("Weights"),
        warnings=tuple(warnings),
        errors=tuple(errors),
    )


def read_inspector(text: str) -> tuple[Kernel, ...]:
    """Return the kernels of IEngineInspector's JSON.

    Written from the documentation; not tested on a GPU.
    """
    kernels = []
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, str):  # the engine was built without detailed profiling
            continue
        nodes = dict.fromkeys(_NODE.findall(str(layer.get("Metadata", ""))))
        kernels.append(
            Kernel(
                name=str(layer.get("Name", "")),
                type=str(layer.get("LayerType", "")),
                tactic=str(layer.get("TacticName", "")),
                inputs=_inspected(layer.get("Inputs", ())),
                constants=_inspected(layer.get("Constants", ())),
                outputs=_inspected(layer.get("Outputs", ())),
                nodes=tuple(nodes),
            )
        )
    return tuple(k for k in kernels if k.type not in SYNCHRONIZATION)


def operands(kernel: Kernel) -> tuple[str, str]:
    """Return the data types of both operands of a multiplying kernel, `?` for one not listed.

    The weight is the largest constant matrix. A MatMul of two computed tensors has none.
    """
    data = kernel.inputs[0].dtype if kernel.inputs else "?"
    weights = [c for c in kernel.constants if c.is_matrix]
    if weights:
        return data, max(weights, key=lambda c: math.prod(c.shape)).dtype
    return data, kernel.inputs[1].dtype if len(kernel.inputs) > 1 else "?"


def _kernel(line: str) -> Kernel | None:
    found = _LINE.match(line)
    if found is None:
        return None
    return Kernel(
        name=found["name"],
        type=found["type"],
        tactic=found["tactic"],
        inputs=_tensors(found["inputs"]),
        constants=_tensors(found["constants"] or ""),
        outputs=_tensors(found["outputs"]),
        nodes=tuple(dict.fromkeys(_NODE.findall(found["metadata"]))),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(_dtype(m["dtype"]), tuple(int(d) for d in m["dims"].split(",") if d.strip()))
        for m in _TENSOR.finditer(text)
    )


def _inspected(tensors: Iterable[dict[str, Any]]) -> tuple[Tensor, ...]:
    """Return the tensors of a layer.

    Older versions have `Format/Datatype` instead of `Datatype`.
    """
    found = []
    for tensor in tensors:
        words = str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "?").split()
        found.append(Tensor(_dtype(words[0]), tuple(tensor.get("Dimensions", ()))))
    return tuple(found)


def _dtype(word: str) -> str:
    return _DTYPES.get(word, word.lower())
