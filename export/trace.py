"""Conversion of a module to a simplified ONNX graph (onnx-ir) with fixed shapes.

Nodes are named after the modules of the model (`blocks.3.attn/matmul`), so that later messages can
name the part of the model.
"""

from __future__ import annotations

import ast
import gc
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

from save_deploy.errors import ExportError
from save_deploy.export.repeat import (
    DOMAIN,
    block_inputs,
    called_block,
    insert,
    structure,
    weights_as_inputs,
    weights_of,
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
REPEATED = 8192  # elements of a repeated constant that is stored
_SCOPES = "pkg.torch.onnx.name_scopes"
KEPT_METADATA = "module"


@dataclass(frozen=True)
class Source:
    """A module to trace with fixed shapes.

    example: its inputs. inputs, output: names of the graph's inputs and output.
    blocks: name of the module's list of blocks, of which each kind is traced only once (repeat.py).
        None traces the module as a whole.
    """

    module: nn.Module
    example: Sequence[Tensor]
    inputs: Sequence[str]
    output: str
    blocks: str | None = None


def graph_from_module(
    module: nn.Module, example: Sequence[Tensor], *, inputs: Sequence[str], output: str,
    blocks: str | None = None,
) -> ir.Model:  # fmt: skip
    """Trace one module, see Source and graphs_from_modules."""
    return graphs_from_modules([Source(module, example, inputs, output, blocks)])[0]


def graphs_from_modules(sources: Sequence[Source]) -> list[ir.Model]:
    """Trace modules together: each call of the exporter takes a second, however small the module.

    The graphs share the modules' weight tensors (no copy).
    """
    kinds = [_Kinds(source) for source in sources]
    parts: list[Source] = []
    for source, own in zip(sources, kinds, strict=True):
        module = (
            source.module if source.blocks is None else with_calls(source.module, source.blocks)
        )
        parts += [replace(source, module=module), *own.parts]
    traced = iter(_traced(parts))
    models = []
    for source, own in zip(sources, kinds, strict=True):
        model = next(traced)
        _reduce(model)
        _keep_module_names(model.graph)
        pieces = [_block_graph(next(traced), part.module) for part in own.parts]
        if source.blocks is not None:
            of_blocks = {name: pieces[kind] for name, kind in own.of_blocks.items()}
            _insert_blocks(model, source.module, of_blocks)
        _merge_equal(model)
        _name_nodes(model.graph)
        model.producer_name = "save-deploy"
        models.append(model)
    return models


class _Kinds:
    """The kinds of blocks of a source.

    parts: the first block of each kind, to trace.
    of_blocks: name of each block -> index of its kind in parts.
    """

    def __init__(self, source: Source) -> None:
        self.parts: list[Source] = []
        self.of_blocks: dict[str, int] = {}
        if source.blocks is None:
            return
        blocks = source.module.get_submodule(source.blocks)
        known: dict[Hashable, int] = {}
        inputs = block_inputs(source.module, source.blocks, source.example)
        for (name, block), (shape, dtype) in zip(blocks.named_children(), inputs, strict=True):
            kind = known.setdefault((structure(block), shape, dtype), len(known))
            if kind == len(self.parts):
                self.parts.append(Source(block, [torch.zeros(shape, dtype=dtype)], ["x"], "y"))
            self.of_blocks[f"{source.blocks}.{name}"] = kind


def _block_graph(model: ir.Model, block: nn.Module) -> ir.Graph:
    """Return the reduced graph of a block with inputs x and its weights."""
    weights_as_inputs(model.graph, block)
    _reduce(model)
    _keep_module_names(model.graph)
    return model.graph


def _insert_blocks(model: ir.Model, module: nn.Module, pieces: Mapping[str, ir.Graph]) -> None:
    """Replace every call of a block in a reduced graph by the block's nodes.

    pieces: name of each block -> graph of its kind.
    """
    graph = model.graph
    for call in [node for node in graph if called_block(node)]:
        name = str(called_block(call))
        for node in insert(graph, call, pieces[name], module.get_submodule(name)):
            set_module(node, ".".join(part for part in (name, module_of(node)) if part))
    del model.opset_imports[DOMAIN]
    _fold_constants(model, shapes=False)  # of weights, as transposed ones


class _Together(nn.Module):
    """All parts as one module: the inputs of all -> the output of each."""

    def __init__(self, parts: Sequence[Source]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.module for part in parts)
        self.counts = [len(part.example) for part in parts]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        return [
            part(*islice(given, count)) for part, count in zip(self.parts, self.counts, strict=True)
        ]


def _traced(parts: Sequence[Source]) -> list[ir.Model]:
    """Return the exporter's graph of each part, with all its redundant nodes."""
    together, quiet = _Together(parts), _quiet("torch.onnx", "onnxscript")
    with warnings.catch_warnings(), quiet, torch.no_grad(), _without_collection():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            together,
            tuple(tensor for part in parts for tensor in part.example),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            optimize=False,
        )
    if program is None:
        raise ExportError(
            "torch.onnx.export returned no graph", hint="report this with your versions"
        )
    given = iter(program.model.graph.inputs)
    weights = weights_of(together)
    order = {name: i for i, name in enumerate(program.model.graph.initializers)}
    models = []
    for i, (part, output) in enumerate(zip(parts, program.model.graph.outputs, strict=True)):
        inputs = list(islice(given, len(part.example)))
        graph = ir.convenience.extract(program.model.graph, inputs, [output])
        _own_names(graph, part, f"parts.{i}", weights, order)
        models.append(ir.Model(graph, ir_version=program.model.ir_version))
    return models


def _own_names(
    graph: ir.Graph, part: Source, prefix: str, weights: Mapping[str, Tensor],
    order: Mapping[str, int],
) -> None:  # fmt: skip
    """Give inputs, output, weights and modules of a part's graph the names that the part has.

    weights: of all parts together, by name. The exporter knows one that several parts have by the name
        in one of them.
    order: place of the constants in the exporter's graph, by name; extraction loses it.
    """
    ends = zip((*graph.inputs, *graph.outputs), (*part.inputs, part.output), strict=True)
    for value, name in ends:
        value.name = name
    own = {id(tensor): name for name, tensor in weights_of(part.module).items()}
    values = sorted(graph.initializers.values(), key=lambda value: order[str(value.name)])
    graph.initializers.clear()
    for value in values:
        if (name := str(value.name)) in weights:
            value.name = own[id(weights[name])]
        graph.initializers.add(value)
    for node in graph:
        scopes = _scope_names(node.metadata_props.get(_SCOPES, ""))
        inner = [re.sub(rf"^{re.escape(prefix)}\b\.?", "", scope) for scope in scopes]
        node.metadata_props[_SCOPES] = repr(inner)
    for domain in set(graph.opset_imports) - {node.domain for node in graph}:
        del graph.opset_imports[domain]


def module_of(node: ir.Node) -> str:
    """Return the name of the module that a node came from, `` for the model itself."""
    return node.metadata_props.get(KEPT_METADATA, "")


def set_module(node: ir.Node, module: str) -> None:
    """Store the name of a node's module in its metadata."""
    node.metadata_props[KEPT_METADATA] = module


def _reduce(model: ir.Model) -> None:
    """Fold constants and remove redundant nodes, in place."""
    for _ in range(2):  # folding can expose redundant reshapes, and removing those more folding
        _fold_constants(model, shapes=True)
        rewriter.rewrite(model, _RULES)


def _fold_constants(model: ir.Model, *, shapes: bool) -> None:
    """Compute constants, in place; shapes: infer shapes as well.

    Large repeated constants are not stored, as a bias for many tokens: megabytes in the file.
    """

    def should_fold(node: ir.Node) -> bool | None:
        shape = node.outputs[0].shape
        large = shape is not None and shape.is_static() and math.prod(shape.numpy()) > REPEATED
        return False if node.op_type == "Expand" and large else None  # None: the library's rules

    optimizer.fold_constants(model, onnx_shape_inference=shapes, should_fold=should_fold)


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


@contextmanager
def _without_collection() -> Iterator[None]:
    """Context without garbage collection, which a trace's many new objects would start often."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
