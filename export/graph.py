"""Module or traced file -> ONNX file in a precision. The one place that writes graphs.

    write_graph(deploy, folder / "model.onnx", spec, quant=quant, fp16=fp16)

The order is fixed: trace, Q/DQ pairs around the quantized MatMuls, FP16 types for the rest, weights
that nothing reads any more removed, file.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn

from save_deploy.bundle import GraphSpec
from save_deploy.errors import ExportError
from save_deploy.export.fp16 import Fp16Plan, drop_unused_weights, to_fp16
from save_deploy.export.quantize.plan import QuantPlan, quantize_graph
from save_deploy.export.trace import graph_from_module

EXTERNAL_ABOVE_BYTES = 1_500_000_000  # protobuf ends at 2 GB; below that one file is simpler


@dataclass(frozen=True)
class WrittenGraph:
    """files: the ONNX file and its external data; operators: type -> how many, most frequent first;
    quantized_nodes: names of the MatMul nodes between Q/DQ pairs."""

    files: tuple[Path, ...]
    operators: dict[str, int]
    quantized_nodes: tuple[str, ...] = ()


def write_graph(
    source: nn.Module | Path, path: Path, spec: GraphSpec, *,
    quant: QuantPlan | None = None, fp16: Fp16Plan | None = None, memo: dict[str, Any] | None = None,
) -> WrittenGraph:  # fmt: skip
    """Write a float32 module, or a float32 graph written before, in the precision of the plans.

    source: a module with the inputs and the output of `spec`, or an ONNX file of write_graph without
    plans. memo: keeps rounded weights for another call with the same source. Raises ExportError when
    the result is not valid ONNX, DataError when the calibration table lacks a MatMul.
    """
    graph = trace(source, spec) if isinstance(source, nn.Module) else ir.load(source)
    nodes: tuple[str, ...] = ()
    if quant is not None:
        nodes = quantize_graph(graph, quant, memo=memo)
    if fp16 is not None:
        to_fp16(graph, fp16)
        drop_unused_weights(graph)
    files = save_graph(graph, path)
    operators = operator_counts(graph)
    _release(graph)
    return WrittenGraph(tuple(files), operators, nodes)


def trace(module: nn.Module, spec: GraphSpec) -> ir.Model:
    """The graph of a module on zeros of the shapes and dtypes of `spec`."""
    example = tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in spec.inputs)
    names = [s.name for s in spec.inputs]
    return graph_from_module(module, example, inputs=names, output=spec.outputs[0].name)


def save_graph(model: ir.Model, path: Path) -> list[Path]:
    """Write model.onnx, with model.onnx.data beside it when the weights need it, and check it.

    Returns the files written. Weights are streamed one tensor at a time.
    """
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    files = [path]
    if size > EXTERNAL_ABOVE_BYTES:
        data = path.with_name(path.name + ".data")
        ir.save(model, path, external_data=data.name)
        files.append(data)
    else:
        ir.save(model, path)
    for file in files:
        os.chmod(file, 0o644)  # onnx writes external data as 0600, unreadable for other users
    try:
        onnx.checker.check_model(str(path), full_check=size <= EXTERNAL_ABOVE_BYTES)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            "the exported graph is not valid ONNX", got=str(error).splitlines()[0]
        ) from error
    return files


def operator_counts(model: ir.Model) -> dict[str, int]:
    """Operator type -> how many, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())


def _release(model: ir.Model) -> None:
    """Drop the weights of a written graph: the exporter keeps a reference to the last graph it saw."""
    for value in model.graph.initializers.values():
        value.const_value = None
