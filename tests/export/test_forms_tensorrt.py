"""What TensorRT-RTX makes of the `tensorrt` forms, by builds on the CPU, and whether FP16 holds them.

No kernel is run here: counts and data types are those of the engine, numbers those of the graph.
Engines of the built-in model: test_engine_matrix.py.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from save_deploy.bundle import model_spec
from save_deploy.calibration.pairs import collect_pairs
from save_deploy.checkpoints import load_model
from save_deploy.data.open import open_dataset
from save_deploy.export.engine.build import BuildResult, build_engine
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.fp16 import (
    FP16_MAX,
    HEADROOM,
    Fp16Plan,
    Fp32Module,
    drop_unused_weights,
    plan_fp16,
    to_fp16,
)
from save_deploy.export.graph import save_graph
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import Forms, forms_for
from save_deploy.export.quantize import find_sites, insert_qdq
from save_deploy.export.trace import graph_from_module
from save_deploy.model.save import SaveModel
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.session import as_batch
from tests.conftest import make_tiny

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='no tensorrt_rtx: pip install "save-deploy[rtx]"',
)
TYPED = Fp16Plan("fp16", ("Softmax",), (), 1, {})
Inputs = list[tuple[torch.Tensor, ...]]


def export(
    model: SaveModel, forms: Forms, path: Path, plan: Fp16Plan = TYPED, fmt: str = ""
) -> Path:
    """The merged model in FP16, its encoder's products in `fmt` where given."""
    deploy = DeployModel(model, forms).eval().requires_grad_(False)
    spec = model_spec(model.config)
    example = tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in spec.inputs)
    names = [s.name for s in spec.inputs]
    graph = graph_from_module(deploy, example, inputs=names, output="mask_logits")
    if fmt:
        products = find_sites(deploy)
        insert_qdq(graph, products, {p.name: 4.0 for p in products}, fmt=fmt)
    to_fp16(graph, plan)
    drop_unused_weights(graph)
    save_graph(graph, path)
    return path


def built(path: Path, target: str = "SM86") -> BuildResult:
    options = BuildOptions(library="rtx", targets=(target,))
    return build_engine(path, path.with_suffix(".engine"), options)


# forms, 8-bit format, most kernels (counted 127, 128, 134 and 132), 8-bit products of three blocks
ENGINES = {
    "fp16": (forms_for("tensorrt"), "", 130, 0),
    "fp16 as at 1024": (forms_for("tensorrt", res=1024), "", 131, 0),
    "int8": (forms_for("tensorrt").quantizable(), "int8", 137, 18),
    "fp8": (forms_for("tensorrt").quantizable(), "fp8", 137, 18),
}


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(
    "name",
    [
        "fp16",
        pytest.param("fp16 as at 1024", marks=pytest.mark.thorough),
        "int8",
        pytest.param("fp8", marks=pytest.mark.thorough),
    ],
)
def test_tiny_engine(name: str, tmp_path: Path) -> None:
    """A global block and two windowed ones: all attentions fused, all products as asked."""
    forms, fmt, most, quantised = ENGINES[name]
    path = export(make_tiny(), forms, tmp_path / "model.onnx", fmt=fmt)
    receipt = built(path, "SM89" if fmt == "fp8" else "SM86").receipt
    assert receipt.fused == receipt.attentions == 3 + 7
    assert receipt.unfused == receipt.unfused_softmax == receipt.fp32_built == ()
    assert receipt.quantised == receipt.quantised_asked == quantised
    assert receipt.n_kernels <= most and receipt.casts <= 1  # the picture's
    assert receipt.activation_bytes is not None and receipt.activation_bytes <= 9e6
    assert receipt.warnings == ()


@pytest.mark.thorough
@needs_rtx
def test_other_forms_show_in_the_receipt(tmp_path: Path) -> None:
    """Twins: products apart need more kernels, an FP32 product is never fused."""
    apart = export(make_tiny(), Forms().quantizable(), tmp_path / "apart.onnx", fmt="int8")
    receipt = built(apart).receipt
    assert receipt.dequantised == ()
    assert receipt.n_kernels > ENGINES["int8"][2]
    scores = "mask_decoder.transformer.layers.0.self_attn.scores"
    plan = Fp16Plan("fp16", ("Softmax",), (Fp32Module(scores, "a test", 1.0),), 1, {})
    island = export(make_tiny(), forms_for("tensorrt"), tmp_path / "island.onnx", plan)
    assert built(island).receipt.fused == 3 + 7 - 1


def huge_scores() -> SaveModel:
    """Scores of a decoder's attention far above FP16, everything else ordinary."""
    model = make_tiny()
    attn = model.mask_decoder.transformer.layers[1].self_attn
    for projection in (attn.q_proj, attn.k_proj):
        projection.weight.mul_(400)
        projection.bias.mul_(400)
    return model


@pytest.fixture(scope="module")
def tiny_inputs() -> Inputs:
    torch.manual_seed(3)
    size = (1, 64, 64, 3)
    return [(torch.randint(0, 256, size, dtype=torch.uint8), torch.rand(1, 128)) for _ in "ab"]


def largest_half(path: Path, inputs: Inputs) -> dict[str, float]:
    """Largest absolute value of every FP16 tensor of a graph, computed in FP32.

    The file itself shows nothing on a CPU: between FP16 operators values are kept in FP32 there.
    """
    model = onnx.load(path)
    typed = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    half = [n for n, v in typed.items() if v.type.tensor_type.elem_type == TensorProto.FLOAT16]
    made = {name for node in model.graph.node for name in node.output}
    assert half and made <= set(typed), "a tensor without a type would go unseen"
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            array = numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    for name in half:
        typed[name].type.tensor_type.elem_type = TensorProto.FLOAT
    kept = {o.name for o in model.graph.output}
    model.graph.output.extend(typed[name] for name in half if name not in kept)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found = dict.fromkeys(half, 0.0)
    for image, audio in inputs:
        feeds = {"image": image.numpy(), "audio_embedding": audio.numpy()}
        for name, value in zip(half, session.run(half, feeds), strict=True):
            found[name] = max(found[name], float(np.abs(value).max()))
    return found


class LayerNormalization(OpRun):  # type: ignore[misc]
    """Statistics in FP32, as the operator's stash_type says and TensorRT does; ONNX's own has FP16."""

    op_domain = ""

    def _run(self, x, scale, bias, axis=None, epsilon=None, stash_type=None):  # type: ignore[no-untyped-def]
        assert stash_type == 1
        wide = x.astype(np.float32)
        centered = wide - wide.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + epsilon)
        return ((centered / deviation).astype(x.dtype) * scale + bias,)


def run_half(path: Path, inputs: tuple[torch.Tensor, ...]) -> np.ndarray:
    """By ONNX's evaluator, which rounds after every operator."""
    evaluator = ReferenceEvaluator(str(path), new_ops=[LayerNormalization])
    feeds = {"image": inputs[0].numpy(), "audio_embedding": inputs[1].numpy()}
    with np.errstate(all="ignore"):
        return evaluator.run(None, feeds)[0]


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["portable", "tensorrt"])
def test_huge_scores_stay_in_half(target: str, tiny_inputs: Inputs, tmp_path: Path) -> None:
    """They are divided and multiplied back, nothing else becomes FP32, and masks are right."""
    model, forms = huge_scores(), forms_for(target)
    plan = plan_fp16(DeployModel(model, forms).eval(), tiny_inputs[:1])
    scores = "mask_decoder.transformer.layers.1.self_attn.scores"
    assert plan.fp32_modules == () and [s.module for s in plan.scaled] == [scores]
    scaled = plan.scaled[0]
    limit = FP16_MAX / HEADROOM
    assert limit / 2 < scaled.value / 2**scaled.exponent <= limit
    path = export(model, forms, tmp_path / "scaled.onnx", plan)
    assert max(largest_half(path, tiny_inputs).values()) <= 2 * limit
    expected = model.forward_embedding(*tiny_inputs[1]).numpy()
    got = run_half(path, tiny_inputs[1])
    assert np.abs(got - expected).max() <= 0.02 * np.ptp(expected)
    naive = export(model, forms, tmp_path / "naive.onnx")
    assert max(largest_half(naive, tiny_inputs).values()) > FP16_MAX
    wrong = run_half(naive, tiny_inputs[1])
    assert not np.abs(wrong - expected).max() <= 0.02 * np.ptp(expected)


@pytest.mark.thorough
@pytest.mark.parametrize(("target", "res", "block"), [("tensorrt", 256, 1), ("portable", 1024, 2)])
def test_scores_with_a_bias_in_half(
    target: str, res: int, block: int, tiny_inputs: Inputs, tmp_path: Path
) -> None:
    """The same in an encoder block, whose position terms are added to the scores (of every strip)."""
    model, forms = make_tiny(), forms_for(target, res=res)
    attn = model.image_encoder.blocks[block].attn
    attn.qkv.weight[:64].mul_(2000)  # q and k
    plan = plan_fp16(DeployModel(model, forms).eval(), tiny_inputs[:1])
    name = f"blocks.{block}.attn"
    assert f"{name}.scores" in {s.module for s in plan.scaled}
    assert f"{name}.scores" not in {i.module for i in plan.fp32_modules}
    path = export(model, forms, tmp_path / "model.onnx", plan)
    assert max(largest_half(path, tiny_inputs[:1]).values()) <= FP16_MAX / HEADROOM
    graph = onnx.load(path).graph
    made_by = {o: n for n in graph.node for o in n.output}
    softmaxes = [n for n in graph.node if n.name.startswith(f"{name}/softmax")]
    assert len(softmaxes) == (1 if target == "tensorrt" else 2)  # a strip for each of two heads
    for softmax in softmaxes:
        add = made_by[softmax.input[0]]
        assert add.op_type == "Add" and made_by[add.input[0]].name.endswith("/whole")


def test_plan_is_stored(tiny_inputs: Inputs) -> None:
    plan = plan_fp16(DeployModel(huge_scores()).eval(), tiny_inputs)
    (stored,) = plan.to_dict()["scaled"]
    assert stored["exponent"] >= 1 and stored["value"] > FP16_MAX / HEADROOM


@pytest.fixture(scope="module")
def demo() -> SaveModel:
    return load_model(None, res=256)


def pairs_of(model: SaveModel, split: str, n: int) -> Inputs:
    pairs = collect_pairs(open_dataset("scenes", split=split), n, res=model.config.res)
    pipeline = eager_pipeline(model)
    return [
        (torch.from_numpy(as_batch(image)), torch.from_numpy(pipeline.embed(waveform)))
        for image, waveform in zip(pairs.image, pairs.waveform, strict=True)
    ]


@pytest.fixture(scope="module")
def demo_plan(demo: SaveModel) -> Fp16Plan:
    """Measured on other pairs than the test's."""
    deploy = DeployModel(demo, forms_for("tensorrt")).eval()
    return plan_fp16(deploy, pairs_of(demo, "val", 4))


@pytest.mark.thorough
def test_trained_checkpoint_in_half(demo: SaveModel, demo_plan: Fp16Plan, tmp_path: Path) -> None:
    """Nothing comes near the limit of FP16: no module in FP32, no scores to divide.

    The twin is the same checkpoint with 200 times the q of one attention of the decoder.
    """
    assert demo_plan.fp32_modules == () and demo_plan.scaled == ()
    path = export(demo, forms_for("tensorrt"), tmp_path / "model.onnx", demo_plan)
    pairs = pairs_of(demo, "test", 8)
    assert max(largest_half(path, pairs).values()) <= FP16_MAX / HEADROOM
    louder = copy.deepcopy(demo)
    louder.mask_decoder.transformer.layers[1].cross_attn_token_to_image.q_proj.weight.mul_(200)
    plan = plan_fp16(DeployModel(louder, forms_for("tensorrt")).eval(), pairs[:1])
    assert [s.module for s in plan.scaled] == [
        "mask_decoder.transformer.layers.1.cross_attn_token_to_image.scores"
    ]


@pytest.mark.thorough
def test_trained_checkpoint_masks_in_half(
    demo: SaveModel, demo_plan: Fp16Plan, tmp_path: Path
) -> None:
    """Rounded after every operator, a real pair with sound: the eager model's mask."""
    path = export(demo, forms_for("tensorrt"), tmp_path / "model.onnx", demo_plan)
    pair = pairs_of(demo, "val", 4)[-1]
    expected, got = demo.forward_embedding(*pair).numpy(), run_half(path, pair)
    assert np.abs(got - expected).max() <= 0.005 * np.ptp(expected)
    assert ((got > 0) != (expected > 0)).mean() <= 1e-3
