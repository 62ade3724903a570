"""config.pbtxt of a model: text form of Triton's ModelConfig message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from save_deploy.bundle import GraphSpec, TensorSpec

_TYPES = {
    "uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
    "bytes": "TYPE_STRING",
}  # fmt: skip
ANY = -1  # dimension of variable size


@dataclass(frozen=True)
class Warmup:
    """Warm-up request that runs before the model is ready. files: input -> raw file in warmup/."""

    name: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of one model.

    backend: onnxruntime, openvino, tensorrt or python.
    gpus: () for the CPU.
    parameters: parameters of the backend.
    optional: inputs that a request may omit.
    most_frames: 0 for dims that contain the batch dimension, else the largest batch that Triton makes.
    more: further fields as text.
    """

    name: str
    spec: GraphSpec
    backend: str
    instances: int = 1
    gpus: tuple[int, ...] = ()
    file: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    warmups: tuple[Warmup, ...] = ()
    optional: tuple[str, ...] = ()
    most_frames: int = 0
    more: tuple[str, ...] = ()

    def text(self) -> str:
        """Return config.pbtxt."""
        lines = [
            f'name: "{self.name}"',
            f'backend: "{self.backend}"',
            *([f'default_model_filename: "{self.file}"'] if self.file else []),
            f"max_batch_size: {self.most_frames}",
            *ports("input", self.spec.inputs, self.optional),
            *ports("output", self.spec.outputs),
            self._instances(),
            *(
                f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
                for key, value in self.parameters.items()
            ),
            *self.more,
            *(line for warmup in self.warmups for line in _warmup(warmup, self.spec.inputs)),
        ]
        return "\n".join(lines) + "\n"

    def _instances(self) -> str:
        where = f"kind: KIND_GPU gpus: {list(self.gpus)}" if self.gpus else "kind: KIND_CPU"
        return f"instance_group [ {{ count: {self.instances} {where} }} ]"


def ports(kind: str, tensors: Iterable[TensorSpec], optional: Iterable[str] = ()) -> list[str]:
    """Return one line per input or output, with its meaning as a comment."""
    may_lack = set(optional)
    return [
        f'{kind} {{ name: "{t.name}" data_type: {_TYPES[t.dtype]} dims: {list(t.shape)}'
        f"{' optional: true' if t.name in may_lack else ''} }}  # {t.meaning}"
        for t in tensors
    ]


def ensemble(name: str, spec: GraphSpec, steps: Iterable[tuple[str, GraphSpec]]) -> str:
    """Return config.pbtxt of an ensemble; tensors are passed between its steps by name."""
    lines = [
        f'name: "{name}"',
        'platform: "ensemble"',
        "max_batch_size: 0",
        *ports("input", spec.inputs),
        *ports("output", spec.outputs),
        "ensemble_scheduling {",
    ]
    for model, graph in steps:
        maps = [("input_map", t.name) for t in graph.inputs]
        maps += [("output_map", t.name) for t in graph.outputs]
        links = " ".join(f'{kind} {{ key: "{key}" value: "{key}" }}' for kind, key in maps)
        lines.append(f'  step {{ model_name: "{model}" model_version: -1 {links} }}')
    return "\n".join([*lines, "}"]) + "\n"


def _warmup(warmup: Warmup, inputs: Iterable[TensorSpec]) -> Iterable[str]:
    yield f"model_warmup {{ name: {json.dumps(warmup.name)} batch_size: 0 count: 1"
    for t in inputs:
        yield (
            f'  inputs {{ key: "{t.name}" value {{ data_type: {_TYPES[t.dtype]} '
            f'dims: {list(t.shape)} input_data_file: "{warmup.files[t.name]}" }} }}'
        )
    yield "}"
