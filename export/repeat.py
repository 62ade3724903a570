"""Blocks of a model in a graph: each structure is traced once, and repeated with other weights.

The blocks of an image encoder are of two or three kinds; blocks of one kind differ in the values of
their weights alone. A model is traced with calls in the place of its blocks (`with_calls`), a block
of each kind as a graph whose weights are inputs (`weights_as_inputs`), and `insert` replaces a call
by a copy of that graph on the weights of its own block.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from torch.func import functional_call

DOMAIN = "save_deploy"  # of the calls; no written graph has it


class _Call(nn.Module):
    """One node that names a block, with the shape and dtype of its input: x -> like x."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        called: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::Block", (x,), {"block": self.name}, dtype=x.dtype, shape=x.shape, version=1
        )
        return called


def with_calls(module: nn.Module, blocks: str) -> nn.Module:
    """Return the module with calls in place of the blocks in its ModuleList `blocks`.

    A block takes one tensor and returns one of the same shape and dtype. The other parts are shared.
    """
    calls = [_Call(f"{blocks}.{i}") for i in range(len(getattr(module, blocks)))]
    return _with_blocks(module, blocks, calls)


def _with_blocks(module: nn.Module, blocks: str, others: Sequence[nn.Module]) -> nn.Module:
    made = copy(module)
    made._modules = {**module._modules, blocks: nn.ModuleList(others)}
    return made


class _Watched(nn.Module):
    """A block's place: keeps shape and dtype of its input, and passes it on."""

    def __init__(self, seen: list[tuple[torch.Size, torch.dtype]]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x.shape, x.dtype))
        return x


def block_inputs(
    module: nn.Module, blocks: str, example: Sequence[Tensor]
) -> list[tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of the input of each block. Nothing is computed."""
    seen: list[tuple[torch.Size, torch.dtype]] = []
    places = [_Watched(seen) for _ in getattr(module, blocks)]
    run_on_meta(_with_blocks(module, blocks, places), *example)
    return seen


def run_on_meta(module: nn.Module, *args: Tensor) -> None:
    """Run a module on meta tensors, which have shapes and dtypes but no values."""
    weights = {name: tensor.to("meta") for name, tensor in weights_of(module).items()}
    with torch.no_grad():
        functional_call(module, weights, tuple(tensor.to("meta") for tensor in args))


def called_block(node: ir.Node) -> str | None:
    """Return the name of the block that a node calls, None for other nodes."""
    return node.attributes["block"].as_string() if node.domain == DOMAIN else None


def structure(block: nn.Module) -> Hashable:
    """Return all that a trace of a block can depend on, except for the values of its weights.

    Types and attributes of all modules, hooks included; names, shapes, strides and dtypes of parameters
    and buffers; which modules and weights are the same object. Objects other than numbers, words,
    tensors and containers of them equal only themselves: blocks with own ones are never alike.
    """
    first: dict[int, str] = {}  # object -> where it occurs first
    found: list[Hashable] = []
    for name, part in block.named_modules(remove_duplicate=False):
        own = {k: v for k, v in vars(part).items() if k not in _LISTED}
        found.append((name, first.setdefault(id(part), name), type(part), _comparable(own)))
    for name, tensor in weights_of(block).items():
        layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
        found.append((name, first.setdefault(id(tensor), name), type(tensor), layout))
    return tuple(found)


_LISTED = ("_parameters", "_buffers", "_modules")  # by named_parameters and so on


def weights_of(block: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    parameters = block.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(block.named_buffers(remove_duplicate=False))}


def _comparable(value: Any) -> Hashable:
    """Return what is equal for equal values of one type only; the identity of other objects."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return type(value), value
    if isinstance(value, dict):
        return type(value), tuple((k, _comparable(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_comparable, value))
    if isinstance(value, set):
        return type(value), frozenset(map(_comparable, value))
    if isinstance(value, Tensor):  # no weight: its values are constants of the graph
        raw = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return type(value), tuple(value.shape), value.stride(), value.dtype, raw
    return type(value), id(value)


def weights_as_inputs(graph: ir.Graph, block: nn.Module) -> None:
    """Make the weights of a block inputs of its graph, so that no value of them is used."""
    for name in [name for name in graph.initializers if name in weights_of(block)]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)


def insert(graph: ir.Graph, call: ir.Node, piece: ir.Graph, block: nn.Module) -> list[ir.Node]:
    """Replace a call by the nodes of a block's graph, on the weights of `block`: the new nodes.

    piece: graph of a block with the same structure. Its values get the name of the block as prefix. A
        weight that an earlier block has, the same object, is the earlier one's value.
    """
    name, weights = called_block(call), weights_of(block)
    x, *inputs = piece.inputs
    values: dict[ir.Value | None, ir.Value | None] = {None: None, x: call.inputs[0]}
    held = {
        id(v.const_value.raw): v
        for v in graph.initializers.values()
        if isinstance(v.const_value, TorchTensor)
    }
    for value in inputs:
        weight = weights[str(value.name)]
        tensor = TorchTensor(weight, name=f"{name}.{value.name}")
        values[value] = held.get(id(weight)) or _initializer(graph, tensor)
    for value in piece.initializers.values():
        values[value] = _initializer(graph, value.const_value, f"{name}.{value.name}")
    made = []
    for node in piece:
        outputs = [
            ir.Value(name=f"{name}.{v.name}", shape=v.shape, type=v.type) for v in node.outputs
        ]
        read = [values[v] for v in node.inputs]
        made.append(
            ir.Node(
                node.domain, node.op_type, read, node.attributes, overload=node.overload,
                outputs=outputs, version=node.version, metadata_props=dict(node.metadata_props),
            )
        )  # fmt: skip
        values.update(zip(node.outputs, outputs, strict=True))
    graph.insert_before(call, made)
    result = values[piece.outputs[0]]
    assert result is not None
    ir.convenience.replace_all_uses_with(call.outputs[0], result)
    graph.remove(call, safe=True)
    return made


def _initializer(graph: ir.Graph, tensor: Any, name: str | None = None) -> ir.Value:
    """Add a constant tensor to a graph and return its value."""
    value = ir.Value(
        name=name or tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )  # fmt: skip
    graph.register_initializer(value)
    return value
