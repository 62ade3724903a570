"""FP16 as tensor types in the graph, with FP32 modules selected by measured ranges.

TensorRT 11 has no precision flags: the types in the ONNX file decide the engine. A module stays
FP32 when a value it reads or computes exceeds FP16's maximum divided by HEADROOM on real inputs, or
when rounding loses too much of its weights (subnormals). Softmax always stays FP32: it sums up to
thousands of exponentials, and fused attention kernels compute it in FP32 anyway.

Attention scores can reach millions. Their MatMul then stays FP16, because an FP32 one is never
fused: q is divided by a power of two, and the FP32 scores are multiplied by it before the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from save_deploy.export.merge.product import Scores
from save_deploy.export.trace import module_of, set_module

FP16_MAX = 65504.0
HEADROOM = 8.0  # inputs that were not measured may give larger values
MAX_WEIGHT_ERROR = 2e-3  # relative L2 error; normal FP16 rounding gives 2e-4
FP32_OPS = ("Softmax",)
_FLOATS = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


@dataclass(frozen=True)
class Fp32Module:
    """A module kept in FP32, with the measured value that exceeded a limit."""

    module: str
    reason: str
    value: float


@dataclass(frozen=True)
class ScaledScores:
    """Attention scores multiplied in FP16 as q / 2**exponent, with the measured maximum."""

    module: str
    exponent: int
    value: float


@dataclass(frozen=True)
class Fp16Plan:
    """Which modules and operators stay FP32, as stored in the manifest."""

    precision: str
    fp32_ops: tuple[str, ...]
    fp32_modules: tuple[Fp32Module, ...]
    n_inputs_measured: int
    largest: dict[str, float]  # module -> largest measured value, for the eight largest
    scaled: tuple[ScaledScores, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest entry, in which fp32_modules has the key `islands`."""
        return {"islands" if k == "fp32_modules" else k: v for k, v in asdict(self).items()}


class _RangeRecorder(TorchDispatchMode):
    """Records the largest absolute value that each innermost module reads or computes.

    What softmax reads does not count: it stays FP32. Parameters do not count: see _weight_errors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.amax: dict[str, float] = {}
        self.known = WeakTensorKeyDictionary()  # value -> its largest absolute value
        self.stack: list[str] = [""]
        self.handles = []
        for name, module in model.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._push(name)))
            self.handles.append(
                module.register_forward_hook(lambda *_: (self.stack.pop(), None)[1])
            )

    def _push(self, name: str):  # type: ignore[no-untyped-def]
        return lambda *_: self.stack.append(name)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        read = [] if func is torch.ops.aten._softmax.default else tree_leaves((args, kwargs))
        for value in read:
            self._record(value, measured=True)
        for value in tree_leaves(out):
            self._record(value)
        return out

    def _record(self, tensor: object, *, measured: bool = False) -> None:
        """Record a tensor. measured: its value is that of the operation that computed it."""
        if not isinstance(tensor, Tensor) or isinstance(tensor, nn.Parameter):
            return
        if not tensor.is_floating_point() or not tensor.numel():
            return
        if not (measured and tensor in self.known):
            low, high = torch.aminmax(tensor.detach())
            value = max(abs(low.item()), abs(high.item()))
            self.known[tensor] = math.inf if math.isnan(value) else value
        module = self.stack[-1]
        self.amax[module] = max(self.amax.get(module, 0.0), self.known[tensor])

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def measure_ranges(
    model: nn.Module, inputs: Iterable[tuple[Tensor, ...]]
) -> tuple[dict[str, float], int]:
    """Run float32 inputs through the model and return (amax by module path, number of inputs)."""
    recorder, count = _RangeRecorder(model), 0
    try:
        for args in inputs:
            with torch.no_grad(), recorder:
                model(*args)
            count += args[0].shape[0]
    finally:
        recorder.close()
    return recorder.amax, count


def plan_fp16(model: nn.Module, inputs: Iterable[tuple[Tensor, ...]]) -> Fp16Plan:
    """Choose the FP32 modules and scaled scores of a float32 model from real inputs."""
    amax, count = measure_ranges(model, inputs)
    limit = FP16_MAX / HEADROOM
    scores = {name for name, module in model.named_modules() if isinstance(module, Scores)}
    modules, scaled = [], []
    for module, value in amax.items():
        if module in scores and limit < value < math.inf:
            scaled.append(ScaledScores(module, math.ceil(math.log2(value / limit)), value))
        elif not value <= limit:
            modules.append(Fp32Module(module, f"values up to this, over {limit:.0f}", value))
    for module, error in _weight_errors(model).items():
        if error > MAX_WEIGHT_ERROR:
            modules.append(Fp32Module(module, "relative weight rounding error", error))
    largest = sorted(amax.items(), key=lambda item: -item[1])[:8]
    return Fp16Plan(
        precision="fp16",
        fp32_ops=FP32_OPS,
        fp32_modules=tuple(modules),
        n_inputs_measured=count,
        largest={module or "model": round(value, 3) for module, value in largest},
        scaled=tuple(scaled),
    )


def _weight_errors(model: nn.Module) -> dict[str, float]:
    """Return the relative L2 error of rounding each module's own weights to FP16."""
    errors = {}
    for name, module in model.named_modules():
        weights = [p.detach() for p in module.parameters(recurse=False) if p.is_floating_point()]
        if weights:
            lost = sum((w - w.half().float()).square().sum().item() for w in weights)
            total = sum(w.square().sum().item() for w in weights)
            errors[name] = (lost / max(total, 1e-30)) ** 0.5
    return errors


def to_fp16(model: ir.Model, plan: Fp16Plan) -> None:
    """Convert the graph to FP16 in place, except modules and operators of the plan.

    Quantized MatMuls also stay FP32. Casts are inserted between the types. Graph inputs and outputs
    keep their types. Weights are converted one at a time when the file is written, so that no
    second copy of all weights is held.
    """
    _Typer(model.graph, plan).run()


class _Typer:
    def __init__(self, graph: ir.Graph, plan: Fp16Plan) -> None:
        self.graph = graph
        self.fp32_modules = {kept.module for kept in plan.fp32_modules}
        self.fp32_ops = set(plan.fp32_ops)
        self.exponents = {scaled.module: scaled.exponent for scaled in plan.scaled}
        self.casts: dict[tuple[str, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        for node in list(self.graph):
            wanted = self._type(node)
            if node.op_type == "Cast":
                if node.attributes["to"].as_int() == ir.DataType.FLOAT:
                    node.attributes["to"] = ir.AttrInt64("to", int(wanted))
            else:
                for i, value in enumerate(node.inputs):
                    if (
                        value is not None
                        and value.dtype in _FLOATS
                        and not _is_parameter_input(node, i)
                    ):
                        node.replace_input_with(i, self._as_type(value, wanted, node))
            for value in node.outputs:
                if value.dtype in _FLOATS:
                    value.dtype = wanted
            if node.op_type == "MatMul" and module_of(node) in self.exponents:
                self._scale(node, self.exponents[module_of(node)])
        for i, value in enumerate(self.graph.outputs):
            if value.dtype == ir.DataType.FLOAT16:
                self._cast_output(i, value)

    def _type(self, node: ir.Node) -> ir.DataType:
        module = module_of(node)
        keep = node.op_type in self.fp32_ops or module in self.fp32_modules
        keep = keep or (module in self.exponents and node.op_type != "MatMul")
        keep = keep or _is_quantized(node)
        return ir.DataType.FLOAT if keep else ir.DataType.FLOAT16

    def _as_type(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        """Return the value in the wanted type: itself, a converted weight, or a shared cast."""
        if value.dtype == wanted:
            return value
        key = (str(value.name), wanted)
        if key not in self.casts:
            if value.const_value is not None and value.is_initializer():
                self.casts[key] = self._retyped_weight(value, wanted)
            else:
                self.casts[key] = self._cast_node(value, wanted, before)
        return self.casts[key]

    def _retyped_weight(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        source = value.const_value
        assert source is not None
        name = f"{value.name}.{wanted.name.lower()}"
        tensor = ir.LazyTensor(
            lambda: ir.Tensor(source.numpy().astype(_FLOATS[wanted]), name=name),
            dtype=wanted,
            shape=ir.Shape(source.shape.numpy()),
            name=name,
            cache=False,
        )
        weight = ir.Value(
            name=name, shape=value.shape, type=ir.TensorType(wanted), const_value=tensor
        )
        self.graph.register_initializer(weight)
        return weight

    def _cast_node(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        name = f"{value.name}.{wanted.name.lower()}"
        cast = ir.node("Cast", [value], {"to": int(wanted)}, name=f"cast/{name}")
        cast.outputs[0].name = name
        cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, wanted
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(producer, cast)
        return cast.outputs[0]

    def _scale(self, node: ir.Node, exponent: int) -> None:
        """Replace q @ k in FP16 with float32(q / 2^e @ k) * 2^e."""
        q, scores = node.inputs[0], node.outputs[0]
        assert q is not None
        users = list(scores.uses())
        smaller = self._times(q, 2.0**-exponent, f"{node.name}/smaller")
        self.graph.insert_before(node, smaller)
        node.replace_input_with(0, smaller.outputs[0])
        wide = self._cast_node(scores, ir.DataType.FLOAT, node)
        whole = self._times(wide, 2.0**exponent, f"{node.name}/whole")
        producer = wide.producer()
        assert producer is not None
        self.graph.insert_after(producer, whole)
        for made in (smaller, producer, whole):
            set_module(made, module_of(node))
        for user, index in users:
            user.replace_input_with(index, whole.outputs[0])

    def _times(self, value: ir.Value, factor: float, name: str) -> ir.Node:
        assert value.dtype is not None
        tensor = ir.Tensor(np.asarray(factor, _FLOATS[value.dtype]), name=f"{name}.factor")
        constant = ir.Value(name=tensor.name, shape=ir.Shape(()), type=ir.TensorType(value.dtype),
                            const_value=tensor)  # fmt: skip
        self.graph.register_initializer(constant)
        node = ir.node("Mul", [value, constant], name=name)
        node.outputs[0].name = f"{name}.out"
        node.outputs[0].shape, node.outputs[0].dtype = value.shape, value.dtype
        return node

    def _cast_output(self, index: int, value: ir.Value) -> None:
        """Insert a cast so that a graph output stays float32 and keeps its name."""
        name = value.name
        value.name = f"{name}.float16"
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"cast/{name}")
        cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
        cast.outputs[0].dtype = ir.DataType.FLOAT
        self.graph.append(cast)
        self.graph.outputs[index] = cast.outputs[0]


def _is_quantized(node: ir.Node) -> bool:
    """Return True for a quantized MatMul and its DequantizeLinear nodes.

    They stay FP32 with a cast after them: with FP16 types ONNX Runtime would multiply floats and
    TensorRT would dequantize some. With FP32 types both use INT8 kernels.
    """
    dequantizes = lambda n: n is not None and n.op_type == "DequantizeLinear"
    if node.op_type == "MatMul":
        return all(v is not None and dequantizes(v.producer()) for v in node.inputs)
    return dequantizes(node)


def _is_parameter_input(node: ir.Node, index: int) -> bool:
    """Return True for an input with a fixed type: roi and scales of Resize are always float32."""
    return node.op_type == "Resize" and index in (1, 2)


def drop_unused_weights(model: ir.Model) -> None:
    """Remove initializers that no node reads, such as float32 originals of converted weights."""
    graph = model.graph
    for name in [
        n for n, v in graph.initializers.items() if not v.uses() and v not in graph.outputs
    ]:
        del graph.initializers[name]
