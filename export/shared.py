"""Weights that several graphs of a bundle read from one file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx_ir as ir


def share_weights(graph: ir.Model, first: Path) -> None:
    """Replace the weights of a graph by references to equal ones in the external data of `first`.

    first: ONNX file in the folder that the graph will be written to.
    A weight without an equal one stays in the graph.
    """
    known = {
        _digest(tensor): tensor
        for tensor in _weights(ir.load(first)).values()
        if isinstance(tensor, ir.ExternalTensor)
    }
    for name, tensor in _weights(graph).items():
        value = graph.graph.initializers[name]
        if found := known.get(_digest(tensor)):
            value.const_value = ir.ExternalTensor(
                found.location, found.offset, found.length, tensor.dtype,
                shape=tensor.shape, name=name, base_dir=first.parent,
            )  # fmt: skip
        elif isinstance(tensor, ir.ExternalTensor):  # of another file, which may be deleted
            value.const_value = ir.Tensor(tensor.numpy().copy(), name=name)


def _weights(graph: ir.Model) -> dict[str, Any]:
    values = graph.graph.initializers
    return {name: v.const_value for name, v in values.items() if v.const_value is not None}


def _digest(tensor: Any) -> tuple[ir.DataType, bytes]:
    return tensor.dtype, hashlib.sha256(tensor.tobytes()).digest()
