"""Conversion of a module or traced file to an ONNX file in a precision. Only this module does it.

    write_graph(deploy, folder / "model.onnx", spec, quant=quant, fp16=fp16)

Steps, in order: trace, insert Q/DQ pairs around quantized MatMuls, convert the rest to FP16, remove
unused weights, write the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
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
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.quantize.plan import QuantPlan, quantize_graph
from save_deploy.export.shared import share_weights
from save_deploy.export.trace import Source, graphs_from_modules
from save_deploy.machine import version
from save_deploy.runtime.session.open import graph_bytes

EXTERNAL_ABOVE_BYTES = 8_000_000  # backends map weights of another file, and processes share them
LARGE_BYTES = 1_500_000_000  # protobuf is limited to 2 GB


@dataclass(frozen=True)
class WrittenGraph:
    """A written graph.

    files: the ONNX file and its external data, if any.
    operators: operator type -> count, most frequent first.
    quantized_nodes: names of the MatMul nodes between Q/DQ pairs.
    """

    files: tuple[Path, ...]
    operators: dict[str, int]
    quantized_nodes: tuple[str, ...] = ()


def write_graph(
    source: nn.Module | ir.Model | Path, path: Path, spec: GraphSpec, *,
    quant: QuantPlan | None = None, fp16: Fp16Plan | None = None, memo: dict[str, Any] | None = None,
    about: Mapping[str, str] | None = None, shared: Path | None = None,
) -> WrittenGraph:  # fmt: skip
    """Write a float32 module, traced or not, or a float32 graph file, in the precision of the plans.

    source: module with the inputs and output of `spec`, its trace, which is used up, or an ONNX file
        that write_graph wrote without plans.
    memo: cache of rounded weights for further calls with the same source.
    about: metadata_props of the file.
    shared: as in save_graph.
    Raises ExportError when the result is not valid ONNX, and DataError when the calibration table
    lacks a MatMul.
    """
    graph = trace(source, spec) if isinstance(source, nn.Module) else source
    if not isinstance(graph, ir.Model):
        graph = ir.load(graph)
    nodes: tuple[str, ...] = ()
    if quant is not None:
        nodes = quantize_graph(graph, quant, memo=memo)
    if fp16 is not None:
        to_fp16(graph, fp16)
        drop_unused_weights(graph)
    graph.producer_name, graph.producer_version = "save-deploy", version("save-deploy")
    graph.metadata_props.update(about or {})
    files = save_graph(graph, path, shared)
    operators = operator_counts(graph)
    _release(graph)
    return WrittenGraph(tuple(files), operators, nodes)


def trace(module: nn.Module, spec: GraphSpec) -> ir.Model:
    """Trace a module on zeros with the shapes and dtypes of `spec`."""
    return trace_together([(module, spec)])[0]


def trace_together(modules: Sequence[tuple[nn.Module, GraphSpec]]) -> list[ir.Model]:
    """Trace modules as `trace` does, in less time than one after the other."""
    return graphs_from_modules(
        [
            Source(
                module,
                [torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in spec.inputs],
                [s.name for s in spec.inputs],
                spec.outputs[0].name,
                blocks="blocks" if isinstance(module, DeployModel) else None,
            )
            for module, spec in modules
        ]
    )


def save_graph(model: ir.Model, path: Path, shared: Path | None = None) -> list[Path]:
    """Write and check an ONNX file, with NAME.data beside it when the weights need it.

    shared: ONNX file whose NAME.data holds the weights of several graphs: `path` itself for the first
        one, which then always has that file.
    Returns the written files. Weights are streamed one tensor at a time.
    """
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    files = [path]
    if shared is not None and shared != path:
        share_weights(model, shared)
        ir.save(model, path)
    elif size > EXTERNAL_ABOVE_BYTES or shared is not None:
        data = path.with_name(path.name + ".data")
        ir.save(model, path, external_data=data.name)
        files.append(data)
    else:
        ir.save(model, path)
    for file in files:
        os.chmod(file, 0o644)  # onnx writes external data as 0600: other users could not read it
    try:
        onnx.checker.check_model(str(path), full_check=size <= LARGE_BYTES)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            "the exported graph is not valid ONNX", got=str(error).splitlines()[0]
        ) from error
    return files


def is_large(path: Path) -> bool:
    """Return True for a written graph whose weights, as one message, are near protobuf's limit."""
    return graph_bytes(path) > LARGE_BYTES


def operator_counts(model: ir.Model) -> dict[str, int]:
    """Return operator type -> count, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())


def _release(model: ir.Model) -> None:
    """Drop the weights of a written graph.

    The exporter keeps a reference to the last graph it saw.
    """
    for value in model.graph.initializers.values():
        value.const_value = None
