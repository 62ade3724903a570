"""The ONNX file: fixed shapes, valid, typed as said, equal to eager; broken graphs are caught."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from save_deploy.bundle import audio_spec, model_spec
from save_deploy.export.audio_graph import DeployAudioEncoder
from save_deploy.export.fp16 import (
    FP16_MAX,
    HEADROOM,
    Fp16Plan,
    drop_unused_weights,
    measure_ranges,
    plan_fp16,
    to_fp16,
)
from save_deploy.export.graph import operator_counts, save_graph
from save_deploy.export.merge.deploy import DeployModel, FrameModel
from save_deploy.export.merge.forms import forms_for
from save_deploy.export.trace import OPSET, graph_from_module, module_of
from save_deploy.metrics.budget import ParityBudget
from save_deploy.metrics.parity import parity
from save_deploy.model.save import SaveModel
from save_deploy.precision import Precision
from save_deploy.runtime.session import OrtSession
from tests.child.kept_traces import kept, module_key

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> SaveModel:
    from tests.conftest import make_tiny

    return make_tiny()


@pytest.fixture(scope="module")
def example(model: SaveModel) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8), torch.rand(1, 128)


def traced(model: SaveModel, example: tuple[torch.Tensor, ...]) -> ir.Model:
    names = [spec.name for spec in model_spec(model.config).inputs]
    return graph_from_module(DeployModel(model).eval(), example, inputs=names, output="mask_logits")


@pytest.fixture(scope="module")
def fp32(model: SaveModel, example, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    save_graph(traced(model, example), path)
    return path


@pytest.fixture(scope="module")
def fp16(model: SaveModel, example, fp32: Path, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("fp16") / "model.onnx"
    graph = ir.load(fp32)
    to_fp16(graph, plan_fp16(DeployModel(model).eval(), [example]))
    drop_unused_weights(graph)
    save_graph(graph, path)
    return path


def run(path: Path, model: SaveModel, example: tuple[torch.Tensor, ...]) -> np.ndarray:
    with OrtSession(path, model_spec(model.config)) as session:
        inputs = {"image": example[0].numpy(), "audio_embedding": example[1].numpy()}
        return session.infer(inputs)["mask_logits"][0]


def eager(model: SaveModel, example: tuple[torch.Tensor, ...]) -> np.ndarray:
    with torch.inference_mode():
        return model.forward_embedding(*example)[0].numpy()


@pytest.mark.thorough
@pytest.mark.parametrize("made", [DeployModel, FrameModel])
def test_simplified_like_the_exporter_does(model: SaveModel, example, made) -> None:  # type: ignore[no-untyped-def]
    """Its own, slower list of rules leaves the same operators, of the eager model too: what benchmarks
    call naive is what the exporter gives."""
    module = made(model).eval()
    with torch.no_grad():
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=OPSET, verbose=False
        )
    assert program is not None
    names = [spec.name for spec in model_spec(model.config).inputs]
    ours = graph_from_module(module, example, inputs=names, output="mask_logits")
    assert operator_counts(ours) == operator_counts(program.model)


def test_interface_is_the_spec(fp32: Path, model: SaveModel) -> None:
    graph = onnx.load(fp32).graph
    spec = model_spec(model.config)
    for values, wanted in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
        assert [v.name for v in values] == [s.name for s in wanted]
        for value, s in zip(values, wanted, strict=True):
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            assert tuple(shape) == s.shape
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            assert dtype == np.dtype(s.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_structure(precision: str, request: pytest.FixtureRequest) -> None:
    """Checker clean, opset as said, static shapes everywhere, real LayerNorms, no foreign domain."""
    path = request.getfixturevalue(precision)
    onnx.checker.check_model(str(path), full_check=True)
    loaded = onnx.load(path)
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", OPSET)]
    for value in onnx.shape_inference.infer_shapes(loaded, strict_mode=True).graph.value_info:
        assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim), value.name
    kinds = {node.op_type for node in loaded.graph.node}
    assert not kinds & {"Sqrt", "Pow", "If", "Loop", "Shape", "NonZero"}
    norms = sum(n.op_type == "LayerNormalization" for n in loaded.graph.node)
    # 2 a block + 1 an adapter, 2 in the neck, 4 in each decoder layer, its last, the upscaling
    assert norms == 3 * 3 + 2 + 2 * 4 + 1 + 1


def test_nodes_carry_our_names(model: SaveModel, fp32: Path) -> None:
    graph = ir.load(fp32).graph
    names = [str(node.name) for node in graph]
    assert len(set(names)) == len(names)
    modules = dict(DeployModel(model).named_modules())
    assert all(module_of(node) in modules for node in graph)
    assert "blocks.1.attn/softmax" in names


def test_fp32_equals_eager(fp32: Path, model: SaveModel, example) -> None:  # type: ignore[no-untyped-def]
    result = parity(eager(model, example), run(fp32, model, example))
    assert result.max_abs_err <= 1e-4 * result.logit_range
    assert result.within(ParityBudget.for_precision(Precision.parse("fp32")))


def test_fp16_agrees_with_eager(fp16: Path, model: SaveModel, example) -> None:  # type: ignore[no-untyped-def]
    result = parity(eager(model, example), run(fp16, model, example))
    assert result.max_abs_err <= 0.002 * result.logit_range
    assert (
        result.flipped <= 1e-3
    )  # untrained masks hang around logit 0; agreement is for trained ones


def test_fp16_is_typed_in_the_file(fp16: Path) -> None:
    """Every weight and every matrix product is float16; every Softmax reads float32."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(fp16)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    types |= {i.name: i.data_type for i in graph.initializer}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert not [i.name for i in graph.initializer if i.data_type == single and len(i.dims) > 1]
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            assert [types[i] for i in node.input] == [half] * len(node.input), node.name
        if node.op_type == "Softmax":
            assert types[node.input[0]] == single


@pytest.mark.parametrize("breakage", ["scale", "swap", "drop bias"])
def test_a_broken_graph_is_caught(  # type: ignore[no-untyped-def]
    fp32: Path, model: SaveModel, example, tmp_path: Path, breakage: str
) -> None:
    """Twin of the parity tests: small damage to the file must be over the FP32 budget."""
    loaded = onnx.load(fp32)
    weights = {i.name: i for i in loaded.graph.initializer}

    def replace(name: str, values: np.ndarray) -> None:
        weights[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))

    if breakage == "scale":
        name = "blocks.1.norm2.weight"
        replace(name, 1.05 * onnx.numpy_helper.to_array(weights[name]))
    elif breakage == "swap":
        a, b = "blocks.0.attn.rel_h", "blocks.0.attn.rel_w"
        first, second = (onnx.numpy_helper.to_array(weights[n]) for n in (a, b))
        replace(a, second)
        replace(b, first)
    else:
        name = "mask_decoder.norm.bias"
        replace(name, 0 * onnx.numpy_helper.to_array(weights[name]))
    onnx.save(loaded, tmp_path / "broken.onnx")
    result = parity(eager(model, example), run(tmp_path / "broken.onnx", model, example))
    assert not result.within(ParityBudget.for_precision(Precision.parse("fp32")))


def test_ranges_are_those_of_hooks(model: SaveModel, example) -> None:  # type: ignore[no-untyped-def]
    """The recorder against a plain forward hook on what one module reads and computes."""
    deploy = DeployModel(model).eval()
    seen = []
    handle = deploy.blocks[1].norm2.register_forward_hook(
        lambda _m, i, o: seen.append(max(i[0].abs().max(), o.abs().max()))
    )
    amax, count = measure_ranges(deploy, [example])
    handle.remove()
    assert count == 1
    assert amax["blocks.1.norm2"] == pytest.approx(seen[0].item())


@pytest.mark.slow
def test_large_values_make_an_island(model: SaveModel, example, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A module that would overflow stays FP32, is listed, and the graph stays right.

    Run by ONNX's reference evaluator: CPU runtimes keep values in FP32 between FP16 operators, so
    they show no overflow.
    """
    from tests.conftest import make_tiny

    def run_typed(plan: Fp16Plan, name: str) -> np.ndarray:
        graph = traced(huge, example)
        to_fp16(graph, plan)
        drop_unused_weights(graph)
        save_graph(graph, tmp_path / name)
        inputs = {"image": example[0].numpy(), "audio_embedding": example[1].numpy()}
        with np.errstate(all="ignore"):
            return ReferenceEvaluator(str(tmp_path / name)).run(None, inputs)[0][0]

    huge = make_tiny()
    mlp = huge.image_encoder.blocks[1].mlp
    mlp.lin1.weight.mul_(2e5)  # the product leaves FP16's range, the weights do not
    mlp.lin2.weight.div_(2e5)
    plan = plan_fp16(DeployModel(huge).eval(), [example])
    kept = {island.module: island.value for island in plan.fp32_modules}
    assert kept["blocks.1.mlp.lin1"] > FP16_MAX / HEADROOM
    assert parity(eager(huge, example), run_typed(plan, "islands.onnx")).flipped <= 1e-3
    without = plan_fp16(DeployModel(model).eval(), [example])
    assert not without.fp32_modules, "an ordinary model has none"
    assert not np.isfinite(run_typed(without, "naive.onnx")).all()


@pytest.mark.slow
def test_a_module_that_only_reads_large_values_is_fp32(example, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A norm has small outputs for any input: what it reads decides."""
    from tests.conftest import make_tiny

    huge = make_tiny()
    huge.image_encoder.pos_embed.data[..., 0] += 1e5
    plan = plan_fp16(DeployModel(huge).eval(), [example])
    kept = {island.module for island in plan.fp32_modules}
    assert {"blocks.0.norm1", "blocks.1.norm1"} <= kept
    graph = traced(huge, example)
    to_fp16(graph, plan)
    drop_unused_weights(graph)
    save_graph(graph, tmp_path / "model.onnx")
    inputs = {"image": example[0].numpy(), "audio_embedding": example[1].numpy()}
    logits = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, inputs)[0]
    assert np.isfinite(logits).all()


def test_a_value_that_is_no_number_is_not_lost() -> None:
    """NaN in the first input stays the maximum, whatever comes later."""
    layer = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
    inputs = [(torch.tensor([[float("nan"), 1.0]]),), (torch.tensor([[2.0, 1.0]]),)]
    amax, _ = measure_ranges(layer, inputs)
    assert amax["1"] == float("inf")


def test_external_data(model: SaveModel, example, fp32: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Large weights go to exactly one file beside the graph, readable by everybody."""
    monkeypatch.setattr("save_deploy.export.graph.EXTERNAL_ABOVE_BYTES", 1000)
    files = save_graph(ir.load(fp32), tmp_path / "model.onnx")
    assert [f.name for f in files] == ["model.onnx", "model.onnx.data"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert all(f.stat().st_mode & 0o777 == 0o644 for f in files)
    result = parity(eager(model, example), run(tmp_path / "model.onnx", model, example))
    assert result.within(ParityBudget.for_precision(Precision.parse("fp32")))


def test_audio_graph_equals_eager(model: SaveModel, tmp_path: Path) -> None:
    from save_deploy.data.log_mel import log_mel_examples

    graph = graph_from_module(
        DeployAudioEncoder(model.audio_encoder).eval(), (torch.zeros(1, 16_000),),
        inputs=["waveform"], output="audio_embedding",
    )  # fmt: skip
    save_graph(graph, tmp_path / "audio.onnx")
    wave = (0.1 * np.random.default_rng(0).normal(size=(1, 16_000))).astype(np.float32)
    with OrtSession(tmp_path / "audio.onnx", audio_spec()) as session:
        got = session.infer({"waveform": wave})["audio_embedding"]
    with torch.inference_mode():
        expected = model.audio_encoder(torch.from_numpy(log_mel_examples(wave[0])[:1])).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_equal_modules_give_equal_graphs(
    model: SaveModel, example: tuple[torch.Tensor, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Which is why tests keep traces on disk: what comes of a kept trace is what comes of a new one."""
    calls = []
    export = getattr(torch.onnx.export, "__wrapped__", torch.onnx.export)

    def counted(module: torch.nn.Module, *args: object, **options: object) -> object:
        calls.append(module)
        return export(module, *args, **options)

    def written(name: str) -> list[Path]:
        return sorted((tmp_path / name).iterdir())

    def save(graph: ir.Model, name: str) -> None:  # of one name: it is in the graph as well
        (tmp_path / name).mkdir()
        save_graph(graph, tmp_path / name / "model.onnx")

    def content(name: str) -> tuple[list[str], list[bytes]]:
        graph = onnx.load(written(name)[0]).graph
        weights = sorted(numpy_helper.to_array(w).tobytes() for w in graph.initializer)
        return [f"{n.name} {n.op_type} {n.attribute}" for n in graph.node], weights

    monkeypatch.setattr(torch.onnx, "export", export)
    save(traced(model, example), "direct")
    monkeypatch.setattr(torch.onnx, "export", kept(counted, tmp_path / "traces"))
    for name in ("new", "kept"):
        save(traced(deepcopy(model), example), name)
    new, again = ([path.read_bytes() for path in written(name)] for name in ("new", "kept"))
    assert new == again
    assert content("direct") == content("kept") and len(calls) == 1


def test_modules_that_differ_have_different_keys(
    model: SaveModel, example: tuple[torch.Tensor, ...]
) -> None:
    same = DeployModel(model).eval()
    key = module_key(same, example, opset_version=20)
    assert module_key(deepcopy(same), example, opset_version=20) == key
    weight, attribute, buffer = deepcopy(same), deepcopy(same), deepcopy(same)
    next(weight.parameters()).data.view(-1)[3] += 1e-3
    attribute.blocks[0].attn.side += 1
    buffer.register_buffer("extra", torch.ones(1), persistent=False)
    forms = DeployModel(model, forms_for("tensorrt", res=64)).eval()
    more = (example[0].repeat(2, 1, 1, 1), example[1])
    others = [module_key(m, example, opset_version=20) for m in (weight, attribute, buffer, forms)]
    others += [module_key(same, more, opset_version=20), module_key(same, example)]
    assert len({key, *others}) == 7
