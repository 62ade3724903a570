"""Insertion of Q/DQ pairs: symmetric, zero point 0, weights per channel, activations per tensor.

Each pair is directly before its MatMul, where ONNX Runtime, OpenVINO and TensorRT all recognize it.
With a Q further up ONNX Runtime computes the MatMul in float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from save_deploy.errors import ExportError
from save_deploy.export.fp16 import drop_unused_weights
from save_deploy.export.quantize.sites import MatMulSite
from save_deploy.export.quantize.weights import (
    FORMATS,
    Format,
    quantize_weight,
    scale_of,
    weight_format,
)
from save_deploy.export.trace import module_of, set_module


def insert_qdq(
    model: ir.Model, products: Sequence[MatMulSite], amax: Mapping[str, float], *,
    fmt: str = "int8", weight_bits: int = 8,
    means: Mapping[str, Sequence[float]] | None = None,
    memo: dict[str, Any] | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Quantize MatMuls of a float32 graph in place, and return the names of their nodes.

    products: sites to quantize.
    weight_bits: of INT8 weights, see weight_format.
    amax: clip threshold of the input of each site, by site name.
    means: mean of each input channel (K,), for sites whose bias corrects the mean error of the
        rounded weight.
    memo: rounded weights of an earlier call with the same graph.
    Raises ExportError when the graph has no node of a site, its weight is not constant, or its means
    are of another number of channels.
    """
    graph, chosen, of_weights = model.graph, FORMATS[fmt], weight_format(fmt, weight_bits)
    nodes = [n for n in graph if n.op_type == "MatMul"]
    done: list[str] = []
    pairs: dict[str, ir.Value] = {}
    for product in products:
        own = [n for n in nodes if product.owns(module_of(n)) and _weight(n) is not None]
        if not own:
            raise ExportError(
                "the graph has no MatMul of this name",
                got=product.name,
                expected="a MatMul with a constant weight",
                hint="export in the form `adapter=matmul`",
            )
        scale = scale_of(amax[product.name], chosen, name=f"the input of {product.name}")
        for node in own:
            value = node.inputs[0]
            assert value is not None
            if str(value.name) not in pairs:
                pairs[str(value.name)] = _activation_pair(
                    graph, value, scale, chosen, module_of(node)
                )
            node.replace_input_with(0, pairs[str(value.name)])
            error = _quantize_weight(graph, node, of_weights, memo)
            mean = (means or {}).get(product.name)
            if mean is not None and len(mean) != len(error):
                raise ExportError(
                    "the bias correction does not fit the model",
                    got=f"{len(mean)} channels for {product.name}",
                    expected=str(len(error)),
                    hint="save-calibrate measures this model",
                )
            _widen_bias(graph, node, None if mean is None else -(np.asarray(mean) @ error))
            done.append(str(node.name))
    drop_unused_weights(model)
    return tuple(done)


def count_work(model: ir.Model, products: Sequence[MatMulSite]) -> dict[str, int]:
    """Return the multiply-accumulates per call of each unit's MatMuls in a float32 graph."""
    work = {p.unit: 0 for p in products}
    nodes = [n for n in model.graph if n.op_type == "MatMul"]
    for product in products:
        for node in (n for n in nodes if product.owns(module_of(n))):
            weight, out = _weight(node), node.outputs[0].shape
            if weight is not None and out is not None:
                work[product.unit] += math.prod(out.numpy()) * int(weight.numpy().shape[0])
    return work


def _weight(node: ir.Node) -> ir.TensorProtocol | None:
    value = node.inputs[1]
    return None if value is None else value.const_value


def _activation_pair(
    graph: ir.Graph, value: ir.Value, scale: np.ndarray, fmt: Format, module: str
) -> ir.Value:
    """Insert value -> Q -> DQ in the module of its MatMul, so that both get the same float type."""
    name = str(value.name)
    factor = _constant(graph, f"{name}.scale", scale)
    zero = _constant(graph, f"{name}.zero", np.zeros((), fmt.dtype))
    q = ir.node("QuantizeLinear", [value, factor, zero], name=f"{name}/quantize")
    dq = ir.node("DequantizeLinear", [q.outputs[0], factor, zero], name=f"{name}/dequantize")
    q.outputs[0].name, dq.outputs[0].name = f"{name}.quantized", f"{name}.dequantized"
    set_module(q, module)
    set_module(dq, module)
    for made, like in ((q.outputs[0], zero), (dq.outputs[0], value)):
        made.shape, made.type = value.shape, ir.TensorType(_dtype(like))
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [q, dq])
    else:
        graph.insert_after(producer, [q, dq])
    return dq.outputs[0]


def _quantize_weight(
    graph: ir.Graph, node: ir.Node, fmt: Format, memo: dict[str, Any] | None
) -> NDArray[np.float32]:
    """Replace a weight with INT8 or FP8 values and a DQ; return the rounding error (K,N)."""
    source = node.inputs[1]
    assert source is not None and source.const_value is not None
    weight = source.const_value.numpy()
    known = {} if memo is None else memo
    if node.name not in known:
        known[str(node.name)] = quantize_weight(weight, fmt, name=f"the weight of {node.name}")
    numbers, scales = known[str(node.name)]
    base = f"{node.name}.weight"
    inputs = [
        _constant(graph, base, numbers),
        _constant(graph, f"{base}.scale", scales),
        _constant(graph, f"{base}.zero", np.zeros(scales.shape, fmt.dtype)),
    ]
    dq = ir.node("DequantizeLinear", inputs, {"axis": 1}, name=f"{node.name}/weight")
    dq.outputs[0].name = f"{base}.dequantized"
    dq.outputs[0].shape, dq.outputs[0].type = source.shape, ir.TensorType(_dtype(source))
    set_module(dq, module_of(node))
    graph.insert_before(node, dq)
    node.replace_input_with(1, dq.outputs[0])
    return numbers.astype(np.float32) * scales - weight


def _widen_bias(graph: ir.Graph, node: ir.Node, shift: NDArray[np.floating] | None) -> None:
    """Reshape a bias (N,) to (1,1,N) and add shift (N,).

    ONNX Runtime fuses MatMul + Add of a vector into a float Gemm. Raises ExportError when there is
    a shift and no bias directly after the MatMul.
    """
    found = False
    for user, _ in list(node.outputs[0].uses()):
        if user.op_type != "Add":
            continue
        for i, value in enumerate(user.inputs):
            if value is not None and value.const_value is not None and len(value.shape or ()) == 1:
                bias, found = value.const_value.numpy(), True
                if shift is not None:
                    bias = (bias + shift).astype(bias.dtype)
                # named after the Add node: MatMuls with equal biases share one constant in the
                # graph, but each has its own shift
                wide = _constant(graph, f"{user.name}.bias", bias.reshape(1, 1, -1))
                user.replace_input_with(i, wide)
    if shift is not None and not found:
        raise ExportError(
            "a MatMul with bias correction has no bias",
            got=str(node.name),
            expected="a constant added directly after the MatMul",
            hint="save-calibrate measures this model",
        )


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None  # the exporter sets the type of every value
    return value.dtype


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.Tensor(np.asarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
