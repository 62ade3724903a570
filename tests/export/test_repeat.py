"""The graph of repeated blocks is that of the whole model; blocks that differ are told apart."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from save_deploy.bundle import GraphSpec, audio_spec, model_spec
from save_deploy.export import trace
from save_deploy.export.audio_graph import DeployAudioEncoder
from save_deploy.export.graph import trace_together
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import Forms, forms_for
from save_deploy.export.repeat import block_inputs, structure
from save_deploy.export.trace import graph_from_module
from save_deploy.model.save import SaveModel
from tests.conftest import make_tiny


def traced(deploy: nn.Module, model: SaveModel, blocks: str | None, batch: int = 1) -> ir.Model:
    return plain_trace(deploy, model_spec(model.config, batch), blocks)


def plain_trace(module: nn.Module, spec: GraphSpec, blocks: str | None = None) -> ir.Model:
    example = [torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in spec.inputs]
    names = [s.name for s in spec.inputs]
    output = spec.outputs[0].name
    return graph_from_module(module, example, inputs=names, output=output, blocks=blocks)


def content(model: ir.Model, weights: set[str]) -> list[Any]:
    """All of a graph but the names of constants and of values between nodes.

    Nodes in order with names, modules, attributes and where each input comes from; weights by their
    bytes and, where their name is one of `weights`, by name.
    """
    graph = model.graph
    origin: dict[ir.Value | None, Any] = {None: None}
    for value in graph.inputs:
        origin[value] = (value.name, str(value.shape), str(value.dtype))
    for value in graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        digest = hashlib.sha256(tensor.tobytes()).hexdigest()
        own = value.name if value.name in weights else ""
        origin[value] = (own, str(tensor.dtype), tuple(tensor.shape), digest)
    found: list[Any] = [sorted(map(str, (origin[v] for v in graph.initializers.values())))]
    for node in graph:
        for i, value in enumerate(node.outputs):
            origin[value] = (node.name, i)
        attributes = sorted((name, str(a.value)) for name, a in node.attributes.items())
        types = [(str(v.shape), str(v.dtype)) for v in node.outputs]
        read = [origin[v] for v in node.inputs]
        found.append((node.name, node.domain, node.op_type, read, attributes, types))
        found.append(dict(node.metadata_props))
    found.append([(v.name, origin[v]) for v in graph.outputs])
    found.append((dict(model.opset_imports), sorted(map(str, model.functions))))
    return found


def graphs(deploy: nn.Module, model: SaveModel, batch: int = 1) -> tuple[list[Any], list[Any]]:
    """Contents of the graph with repeated blocks and of the plain trace."""
    weights = {name for name, _ in [*deploy.named_parameters(), *deploy.named_buffers()]}
    ours = content(traced(deploy, model, "blocks", batch), weights)
    return ours, content(traced(deploy, model, None, batch), weights)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that the exporter traces, in order."""
    made: list[nn.Module] = []
    real = trace._traced

    def counted(parts: Any) -> Any:
        made.extend(part.module for part in parts)
        return real(parts)

    monkeypatch.setattr(trace, "_traced", counted)
    return made


MATMULS = Forms(windows="real_queries").quantizable()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "forms", "batch"),
    [
        ({}, forms_for("portable"), 1),
        ({}, forms_for("tensorrt"), 2),
        pytest.param({}, forms_for("tensorrt", res=1024), 1, marks=pytest.mark.thorough),
        ({}, MATMULS, 1),
        ({}, Forms().without("windows", "scale", "rel_pos", "audio", "decoder", "normalise"), 1),
        pytest.param({"res": 128}, forms_for("portable"), 1, marks=pytest.mark.thorough),
        pytest.param(
            {"audio_inject": "after"}, forms_for("portable"), 3, marks=pytest.mark.thorough
        ),
        pytest.param(
            {"audio_mode": "recursive"}, forms_for("portable"), 1, marks=pytest.mark.thorough
        ),
    ],
)
def test_the_graph_is_that_of_the_whole_model(
    changes: dict[str, Any], forms: Forms, batch: int, traces: list[nn.Module]
) -> None:
    model = make_tiny(**changes)
    deploy = DeployModel(model, forms).eval()
    repeated, plain = graphs(deploy, model, batch)
    assert repeated == plain
    # the model with calls, a windowed block, a global one (of three blocks); the whole model
    assert len(traces) == 4


@pytest.mark.slow
def test_a_block_with_weights_of_another_is_told_apart() -> None:
    """Twin: the comparison above sees one wrong weight of a repeated block."""
    model = make_tiny()
    deploy = DeployModel(model, forms_for("portable")).eval()
    _, right = graphs(deploy, model)
    wrong = deepcopy(deploy)
    wrong.blocks[1].mlp.lin1.weight = nn.Parameter(deploy.blocks[0].mlp.lin1.weight.clone())
    assert graphs(wrong, model)[0] != right


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["kept traces", "the exporter"])
def test_modules_traced_together_have_the_graphs_of_each_alone(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of the exporter for a model with one and two frames, whose weights are the same
    tensors, for its audio encoder, and for a block that has a weight of another kind of block."""
    if not kept:
        monkeypatch.setattr(torch.onnx, "export", inspect.unwrap(torch.onnx.export))
    model = make_tiny()
    deploy = DeployModel(model, forms_for("portable")).eval()
    deploy.blocks[2].mlp.lin1.weight = deploy.blocks[0].mlp.lin1.weight
    audio = DeployAudioEncoder(model.audio_encoder).eval()
    specs = [model_spec(model.config, batch) for batch in (1, 2)]
    modules = [*((deploy, spec) for spec in specs), (audio, audio_spec())]
    calls: list[Any] = []
    real = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: calls.append(a) or real(*a, **k))
    together = trace_together(modules)
    assert len(calls) == 1
    for graph, (module, spec) in zip(together, modules, strict=True):
        weights = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
        alone = plain_trace(module, spec)
        assert content(graph, weights) == content(alone, weights)
    assert len(calls) == 4


def test_inputs_of_blocks_are_known_without_computing() -> None:
    """Of three blocks on 4 x 4 tokens with 32 channels; weights without values are enough."""
    deploy = DeployModel(make_tiny(), forms_for("portable")).eval().to("meta")
    spec = model_spec(deploy.config, 5)  # type: ignore[arg-type]
    example = [
        torch.empty(s.shape, dtype=getattr(torch, s.dtype), device="meta") for s in spec.inputs
    ]
    found = block_inputs(deploy, "blocks", example)
    assert found == [(torch.Size([5, 4, 4, 32]), torch.float32)] * 3


@pytest.mark.slow
def test_blocks_that_differ_are_traced_apart(traces: list[nn.Module]) -> None:
    model = make_tiny()
    deploy = DeployModel(model, forms_for("portable")).eval()
    deploy.blocks[1].mlp.act = nn.ReLU()
    repeated, plain = graphs(deploy, model)
    assert repeated == plain
    assert len(traces) == 5  # each of the three blocks


def scaled_input(block: nn.Module) -> None:
    block.adapter = block.adapter.with_scaled_input(torch.ones(32))  # type: ignore[operator, union-attr]


def shared_norm(block: nn.Module) -> None:
    block.norm2 = block.norm1


def shared_weight(block: nn.Module) -> None:
    block.norm2.weight = block.norm1.weight  # type: ignore[union-attr, assignment]


def wider(block: nn.Module) -> None:
    block.mlp.lin1 = nn.Linear(32, 256)  # type: ignore[union-attr]


def other_type(block: nn.Module) -> None:
    block.mlp.act = nn.ReLU()  # type: ignore[union-attr]


def other_flag(block: nn.Module) -> None:
    block.attn.scale = 1  # type: ignore[union-attr, assignment]


def other_eps(block: nn.Module) -> None:
    block.norm1.eps = 1e-3  # type: ignore[union-attr, assignment]


def hooked(block: nn.Module) -> None:
    block.norm1.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]


def own_constant(block: nn.Module) -> None:
    block.__dict__["table"] = torch.ones(3)


def own_object(block: nn.Module) -> None:
    block.__dict__["helper"] = object()


def more_precise(block: nn.Module) -> None:
    block.norm1.double()  # type: ignore[union-attr, operator]


def other_buffer(block: nn.Module) -> None:
    block.register_buffer("seen", torch.zeros(2))


CHANGES = (
    scaled_input, shared_norm, shared_weight, wider, other_type, other_flag, other_eps, hooked,
    own_constant, own_object, more_precise, other_buffer,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_structures_of_unlike_blocks_differ(change: Callable[[nn.Module], None]) -> None:
    first, second, last = DeployModel(make_tiny(), MATMULS).eval().blocks
    assert structure(first) == structure(second) != structure(last)  # weights alone differ
    change(second)
    assert structure(first) != structure(second)


def test_constants_of_blocks_are_compared_by_value() -> None:
    first, second, _ = DeployModel(make_tiny(), MATMULS).eval().blocks
    first.__dict__["table"], second.__dict__["table"] = torch.ones(3), torch.ones(3)
    assert structure(first) == structure(second)
    second.__dict__["table"][1] = 2
    assert structure(first) != structure(second)
