"""Conversion of a module to a simplified ONNX graph (onnx-ir) with fixed shapes.

Nodes are named after the modules of the model (`blocks.3.attn/matmul`), so that later messages can
name the part of the model.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

from save_deploy.errors import ExportError
from save_deploy.export.repeat import (
    DOMAIN,
    called_block,
    insert,
    structure,
    weights_as_inputs,
    with_calls,
)

OPSET = 20  # first opset with Gelu; supported by current TensorRT and ONNX Runtime
# Rewrite rules for redundant nodes. The exporter's own list also merges slices into splits: its
# time is quadratic in the number of nodes (9 s for vit_t), and these graphs have no such slices.
_RULES = (
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.no_op_cast_rule,
    rules.cast_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.remove_optional_bias_from_conv_rule,
)
_SCOPES = "pkg.torch.onnx.name_scopes"
KEPT_METADATA = "module"


def graph_from_module(
    module: nn.Module, example: Sequence[Tensor], *, inputs: Sequence[str], output: str,
    blocks: str | None = None,
) -> ir.Model:  # fmt: skip
    """Trace a module with fixed shapes. The graph shares the module's weight tensors (no copy).

    blocks: name of the module's list of blocks, of which each structure is traced only once
        (repeat.py). None traces the module as a whole.
    """
    outer = module if blocks is None else with_calls(module, blocks)
    model = _traced(outer, example, inputs, output)
    _reduce(model)
    _keep_module_names(model.graph)
    if blocks is not None:
        _insert_blocks(model, module)
    _merge_equal(model)
    _name_nodes(model.graph)
    model.producer_name = "save-deploy"
    return model


def _insert_blocks(model: ir.Model, module: nn.Module) -> None:
    """Replace every call of a block in a reduced graph by the block's nodes."""
    graph = model.graph
    kinds: dict[Hashable, ir.Graph] = {}
    for call in [node for node in graph if called_block(node)]:
        name = str(called_block(call))
        block, x = module.get_submodule(name), call.inputs[0]
        assert x is not None and x.shape is not None and x.dtype is not None
        kind = (structure(block), x.shape.numpy(), x.dtype)
        if kind not in kinds:
            zeros = torch.zeros(x.shape.numpy(), dtype=tensor_adapters.to_torch_dtype(x.dtype))
            kinds[kind] = _traced_block(block, zeros)
        for node in insert(graph, call, kinds[kind], block):
            set_module(node, ".".join(part for part in (name, module_of(node)) if part))
    del model.opset_imports[DOMAIN]
    optimizer.fold_constants(model, onnx_shape_inference=False)  # of weights, as transposed ones


def _traced_block(block: nn.Module, zeros: Tensor) -> ir.Graph:
    """Return the reduced graph of a block with inputs x and its weights."""
    model = _traced(block, (zeros,), ["x"], "y")
    weights_as_inputs(model.graph, block)
    _reduce(model)
    _keep_module_names(model.graph)
    return model.graph


def _traced(
    module: nn.Module, example: Sequence[Tensor], inputs: Sequence[str], output: str
) -> ir.Model:
    """Return the exporter's graph of a module, with all its redundant nodes."""
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(example),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            verbose=False,
            optimize=False,
        )
    if program is None:
        raise ExportError(
            "torch.onnx.export returned no graph", hint="report this with your versions"
        )
    return program.model


def module_of(node: ir.Node) -> str:
    """Return the name of the module that a node came from, `` for the model itself."""
    return node.metadata_props.get(KEPT_METADATA, "")


def set_module(node: ir.Node, module: str) -> None:
    """Store the name of a node's module in its metadata."""
    node.metadata_props[KEPT_METADATA] = module


def _reduce(model: ir.Model) -> None:
    """Fold constants and remove redundant nodes, in place."""
    for _ in range(2):  # folding can expose redundant reshapes, and removing those more folding
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, _RULES)


def _merge_equal(model: ir.Model) -> None:
    """Make constants initializers and merge equal constants and nodes, in place."""
    for step in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        step(model)


def _keep_module_names(graph: ir.Graph) -> None:
    """Keep the name of each node's module as its only metadata."""
    for node in graph:
        scopes = node.metadata_props.get(_SCOPES, "")
        names = [s for s in _scope_names(scopes)[:-1] if s]
        node.metadata_props.clear()
        set_module(node, names[-1] if names else "")


def _name_nodes(graph: ir.Graph) -> None:
    """Name each node after its module and operator."""
    seen: Counter[str] = Counter()
    for node in graph:
        base = f"{module_of(node) or 'model'}/{node.op_type.lower()}"
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"


def _scope_names(text: str) -> list[str]:
    """Parse the exporter's list of scopes, a Python literal."""
    return [str(s) for s in ast.literal_eval(text)] if text else []


class _quiet:
    """Context that silences loggers below ERROR while tracing."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
