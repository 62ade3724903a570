"""Q/DQ: where it stands, that it is symmetric, what it costs, and which kernels really run it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.utils.flop_counter import FlopCounterMode

from save_deploy.bundle import model_spec
from save_deploy.calibration.observe import Observer, observe
from save_deploy.errors import ExportError
from save_deploy.export.fp16 import Fp16Plan, drop_unused_weights, to_fp16
from save_deploy.export.graph import save_graph
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import Forms, forms_for
from save_deploy.export.options import ExportOptions
from save_deploy.export.quantize import FORMATS, find_sites, insert_qdq, quantize_weight
from save_deploy.export.quantize.plan import QuantPlan, require_weight_bits
from save_deploy.export.quantize.qdq import count_work
from save_deploy.export.quantize.weights import largest_weight, scale_of, to_format
from save_deploy.export.trace import graph_from_module
from save_deploy.metrics.margin import sqnr_db
from save_deploy.runtime.kernels import executed_kernels
from save_deploy.runtime.session import OrtSession
from tests.conftest import TINY, make_tiny

FORMS = Forms(windows="real_queries").quantizable()


@pytest.fixture(scope="module")
def deploy() -> DeployModel:
    return DeployModel(make_tiny(), FORMS).eval()


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8), torch.rand(1, 128)


@pytest.fixture(scope="module")
def amax(deploy, pair) -> dict[str, float]:  # type: ignore[no-untyped-def]
    observer = Observer(deploy, [p.name for p in find_sites(deploy)])
    observe(deploy, observer, [pair])
    return {name: h.amax("minmax") for name, h in observer.histograms.items()}


def traced(deploy: DeployModel, pair: tuple[torch.Tensor, ...]) -> ir.Model:
    names = [spec.name for spec in model_spec(deploy.config).inputs]
    return graph_from_module(deploy, pair, inputs=names, output="mask_logits")


@pytest.fixture(scope="module")
def files(deploy, pair, amax, tmp_path_factory) -> dict[str, Path]:  # type: ignore[no-untyped-def]
    """fp32, int8, fp8 and int8 with FP16 float parts."""
    folder, found = tmp_path_factory.mktemp("quantized"), {}
    for name in ("fp32", "int8", "fp8", "int8_fp16"):
        graph = ir.load(found["fp32"]) if found else traced(deploy, pair)
        if name != "fp32":
            insert_qdq(graph, find_sites(deploy), amax, fmt=name.partition("_")[0])
        if name == "int8_fp16":
            to_fp16(graph, Fp16Plan("fp16", ("Softmax",), (), 1, {}))
            drop_unused_weights(graph)
        found[name] = folder / f"{name}.onnx"
        save_graph(graph, found[name])  # runs onnx's checker
    return found


def arrays(pair: tuple[torch.Tensor, torch.Tensor]) -> dict[str, np.ndarray]:
    return {"image": pair[0].numpy(), "audio_embedding": pair[1].numpy()}


def run(path: Path, deploy: DeployModel, pair) -> np.ndarray:  # type: ignore[no-untyped-def]
    with OrtSession(path, model_spec(deploy.config)) as session:
        return session.infer(arrays(pair))["mask_logits"]


def quantized_nodes(path: Path) -> list[str]:
    """Names of MatMul nodes both of whose inputs come from DequantizeLinear."""
    graph = onnx.load(path).graph
    made_by = {o: n.op_type for n in graph.node for o in n.output}
    return [
        n.name
        for n in graph.node
        if n.op_type == "MatMul" and all(made_by.get(i) == "DequantizeLinear" for i in n.input)
    ]


def test_products_of_a_block(deploy: DeployModel) -> None:
    """Per block: qkv, proj, lin1, lin2, the strided convolution (1) and its transpose (4)."""
    products = find_sites(deploy)
    assert [p.name for p in products[:6]] == [
        "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.lin1", "blocks.0.mlp.lin2",
        "blocks.0.adapter.down", "blocks.0.adapter.up",
    ]  # fmt: skip
    assert len(products) == 6 * TINY["depth"]
    assert products[0].norm == "blocks.0.norm1" and products[2].norm == "blocks.0.norm2"


def test_work_of_a_unit(deploy: DeployModel, pair, files) -> None:  # type: ignore[no-untyped-def]
    """Against PyTorch's own count, by module."""
    products = find_sites(deploy)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        deploy(*pair)
    counts = counter.get_flop_counts()
    expected = {p.unit: 0 for p in products}
    for product in products:
        expected[product.unit] += sum(counts[f"DeployModel.{product.name}"].values()) // 2
    assert count_work(ir.load(files["fp32"]), products) == expected
    assert len(set(expected.values())) == 3


def test_every_product_and_nothing_else_is_quantized(files, deploy) -> None:  # type: ignore[no-untyped-def]
    graph = onnx.load(files["int8"]).graph
    made_by = {o: n for n in graph.node for o in n.output}
    asked = quantized_nodes(files["int8"])
    assert len(asked) == 9 * TINY["depth"]
    readers = {i: n for n in graph.node for i in n.input}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":  # feeds a product, and only a product
            assert readers[node.output[0]].name in asked
        if node.op_type == "QuantizeLinear":
            assert readers[node.output[0]].op_type == "DequantizeLinear"
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    for name in asked:
        node = next(n for n in graph.node if n.name == name)
        data, weight = (made_by[i] for i in node.input)
        assert weights[data.input[1]].shape == () and weights[data.input[2]].dtype == np.int8
        assert weights[weight.input[0]].dtype == np.int8
        assert weights[weight.input[1]].shape == (weights[weight.input[0]].shape[1],)
        assert not weights[data.input[2]].any() and not weights[weight.input[2]].any()
        assert np.abs(weights[weight.input[0]].astype(int)).max() <= 127


def test_separate_products_are_refused() -> None:
    """ONNX Runtime would compute them in float, without a word."""
    with pytest.raises(ExportError, match=r"separate products(.|\n)*quantizable"):
        find_sites(DeployModel(make_tiny(), Forms(adapter="matmul")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "forms", [forms_for("tensorrt"), forms_for("portable", res=1024)], ids=["tensorrt", "1024 px"]
)
def test_other_forms_are_quantized(forms: Forms, pair, amax, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Under the same names and ranges, so one calibration table serves all targets.

    The `tensorrt` forms have one product where others have four; at 1024 px attention is in strips.
    """
    model = make_tiny()
    joined = DeployModel(model, forms.quantizable()).eval()
    products = find_sites(joined)
    assert products == find_sites(DeployModel(model, FORMS))
    observer = Observer(joined, [p.name for p in products])
    observe(joined, observer, [pair])
    ranges = {name: h.amax("minmax") for name, h in observer.histograms.items()}
    assert ranges == pytest.approx(amax, rel=1e-5)
    graph = traced(joined, pair)
    nodes = insert_qdq(graph, products, ranges)
    save_graph(graph, tmp_path / "int8.onnx")
    n_products = (6 if forms.joined else 9) * TINY["depth"]
    assert len(nodes) == len(quantized_nodes(tmp_path / "int8.onnx")) == n_products
    got = ReferenceEvaluator(str(tmp_path / "int8.onnx")).run(None, arrays(pair))[0]
    assert sqnr_db(joined(*pair).detach().numpy(), got) >= 35


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least_db"), [("int8", 45), ("fp8", 30), ("int8_fp16", 40)])
def test_logits_stay_close(files, deploy, pair, name: str, least_db: float) -> None:  # type: ignore[no-untyped-def]
    """Against the float graph, by ONNX's own evaluator; and ONNX Runtime agrees for INT8."""
    expected = run(files["fp32"], deploy, pair)
    got = ReferenceEvaluator(str(files[name])).run(None, arrays(pair))[0]
    centered = expected - expected.mean()
    assert sqnr_db(centered, got - expected.mean()) > least_db
    if name == "int8":
        native = run(files[name], deploy, pair)
        assert sqnr_db(centered, native - expected.mean()) > least_db


@pytest.mark.slow
def test_a_wrong_scale_is_caught(files, deploy, pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Twin of test_logits_stay_close: one scale ten times too large."""
    model = onnx.load(files["int8"])
    name = "blocks.2.mlp.lin2/matmul.weight.scale"
    scale = next(w for w in model.graph.initializer if w.name == name)
    value = numpy_helper.to_array(scale) * 10
    scale.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, tmp_path / "wrong.onnx")
    expected = run(files["fp32"], deploy, pair)
    got = run(tmp_path / "wrong.onnx", deploy, pair)
    assert sqnr_db(expected - expected.mean(), got - expected.mean()) < 20


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_kernels_really_run(files, pair, backend: str) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip(backend)
    asked = quantized_nodes(files["int8"])
    check = executed_kernels(backend, files["int8"], asked, arrays(pair))
    assert 0 < check.asked == check.int8, check.not_int8
    assert executed_kernels(backend, files["fp32"], asked, arrays(pair)).int8 == 0


def test_int8_and_fp16_share_their_integers(files) -> None:  # type: ignore[no-untyped-def]
    """The same table gives the same 8-bit weights, whatever the float parts are."""
    of = lambda name: {
        w.name: numpy_helper.to_array(w)
        for w in onnx.load(files[name]).graph.initializer
        if w.data_type == onnx.TensorProto.INT8
    }
    full, half = of("int8"), of("int8_fp16")
    assert full.keys() == half.keys() and len(full) > 9 * TINY["depth"]
    assert all((full[k] == half[k]).all() for k in full)
    kinds = {w.data_type for w in onnx.load(files["int8_fp16"]).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_equal_biases_are_corrected_apart(deploy, files, amax) -> None:  # type: ignore[no-untyped-def]
    """One constant of the graph may be the bias of several products, whose corrections differ."""
    names = ["blocks.0.mlp.lin2", "blocks.1.mlp.lin2"]
    products = [p for p in find_sites(deploy) if p.name in names]
    graph = ir.load(files["fp32"])
    adds = [
        next(iter(n.outputs[0].uses())).node
        for n in graph.graph
        if n.op_type == "MatMul" and n.name.startswith(tuple(names))
    ]
    place = lambda add: next(i for i, v in enumerate(add.inputs) if v.const_value is not None)
    first, second = adds
    shared = first.inputs[place(first)]
    second.replace_input_with(place(second), shared)
    bias = shared.const_value.numpy().copy()
    mean = np.full(deploy.blocks[0].mlp.lin2.in_features, 3.0)
    nodes = insert_qdq(graph, products, amax, means=dict.fromkeys(names, mean))
    assert len(nodes) == len(adds) == 2
    shifts = [add.inputs[place(add)].const_value.numpy().ravel() - bias for add in adds]
    assert all(shift.any() for shift in shifts)
    for shift, node in zip(shifts, nodes, strict=True):
        made = {str(v.name): v.const_value.numpy() for v in graph.graph.initializers.values()}
        rounded = made[f"{node}.weight"].astype(np.float32) * made[f"{node}.weight.scale"]
        weight = deploy.get_submodule(node.rpartition("/")[0]).weight.numpy().T
        np.testing.assert_allclose(shift, -(mean @ (rounded - weight)), atol=1e-6)


@pytest.mark.parametrize("n", [1, -1, 1000])
def test_means_of_another_number_of_channels(deploy, files, amax, n: int) -> None:  # type: ignore[no-untyped-def]
    """One number would be spread over all channels, and more end in numpy."""
    name = "blocks.0.mlp.lin2"
    width = deploy.get_submodule(name).in_features
    products = [p for p in find_sites(deploy) if p.name == name]
    mean = [0.5] * (n if n > 0 else width + n)
    with pytest.raises(ExportError, match="bias correction does not fit") as caught:
        insert_qdq(ir.load(files["fp32"]), products, amax, means={name: mean})
    assert caught.value.got == f"{len(mean)} channels for {name}"
    assert caught.value.expected == str(width) and "save-calibrate" in caught.value.hint


@pytest.mark.slow
def test_a_product_the_graph_has_not(deploy, pair, amax) -> None:  # type: ignore[no-untyped-def]
    other = DeployModel(make_tiny(), Forms(adapter="off")).eval()
    with pytest.raises(ExportError, match=r"blocks\.0\.adapter\.down"):
        insert_qdq(traced(other, pair), find_sites(deploy), amax)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_scale_is_an_fp16_number_that_never_overflows(fmt) -> None:  # type: ignore[no-untyped-def]
    amax = np.concatenate([np.geomspace(1e-6, 5e4, 999), [0.0]])
    scale = scale_of(amax, fmt)
    assert (scale == scale.astype(np.float16)).all() and (scale > 0).all()
    assert (scale.astype(np.float64) * fmt.levels >= amax).all()
    assert (scale[500:-1] * fmt.levels <= amax[500:-1] * 1.001).all()


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_a_range_no_scale_holds(fmt, deploy, files, amax) -> None:  # type: ignore[no-untyped-def]
    """The largest FP16 number is the largest scale: above it a tensor is refused, not infinite."""
    assert scale_of(65504.0 * fmt.levels, fmt) == 65504
    with pytest.raises(ExportError, match="too large"):
        scale_of(65510.0 * fmt.levels, fmt)
    wide = {**amax, "blocks.1.mlp.lin2": 3e7}
    with pytest.raises(ExportError, match=r"blocks\.1\.mlp\.lin2 is too large for INT8"):
        insert_qdq(ir.load(files["fp32"]), find_sites(deploy), wide, fmt=fmt.name)
    weight = np.full((4, 3), 4e7, np.float32)
    with pytest.raises(ExportError, match="the weight of here is too large"):
        quantize_weight(weight, fmt, name="the weight of here")


def test_weight_rounding_against_float64() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(96, 40)).astype(np.float32)
    numbers, scale = quantize_weight(weight, FORMATS["int8"], clips=(1.0,))
    exact = np.clip(np.round(weight.astype(np.float64) / scale), -127, 127)
    assert (numbers == exact).all()
    error = lambda n, s: np.square(n * s.astype(np.float64) - weight).sum(axis=0)
    clipped = error(*quantize_weight(weight, FORMATS["int8"]))
    assert (clipped <= error(numbers, scale)).all()
    weight[0] = 5.0 + np.abs(weight).max()  # one outlier a channel: clipping must not make it worse
    numbers, scale = quantize_weight(weight, FORMATS["int8"], clips=(1.0,))
    assert (error(*quantize_weight(weight, FORMATS["int8"])) <= error(numbers, scale)).all()


def test_fp8_rounding_against_ml_dtypes() -> None:
    values = np.linspace(-3, 3, 1001, dtype=np.float32)
    scale = scale_of(3.0, FORMATS["fp8"])
    numbers = to_format(values, scale, FORMATS["fp8"])
    assert numbers.dtype == ml_dtypes.float8_e4m3fn
    back = numbers.astype(np.float32) * scale
    assert np.isfinite(back).all()
    assert np.abs(back - values).max() <= 3.0 * 2**-4  # three bits of mantissa


@pytest.mark.slow
def test_weights_of_7_bits(deploy, pair, amax, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Largest values 64, read back from the file; the plan's promise is checked against it."""
    sites = find_sites(deploy)
    found = {}
    for bits, levels in ((7, 64), (8, 127)):
        graph = traced(deploy, pair)
        assert largest_weight(graph) == 0
        insert_qdq(graph, sites, amax, weight_bits=bits)
        path = tmp_path / f"{bits}.onnx"
        save_graph(graph, path)
        stored = [numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer]
        matrices = [a for a in stored if a.dtype == np.int8 and a.ndim == 2]
        assert len(matrices) >= len(sites)
        assert max(int(np.abs(m.astype(int)).max()) for m in matrices) == levels
        found[bits] = path
    plan = QuantPlan("int8", None, sites, "minmax", weight_bits=7)  # type: ignore[arg-type]
    assert require_weight_bits(found[7], plan) == {"largest_weight": 64}
    with pytest.raises(ExportError, match="more than 7 bits"):
        require_weight_bits(found[8], plan)
    assert require_weight_bits(found[8], replace(plan, weight_bits=8)) == {"largest_weight": 127}
    assert require_weight_bits(found[8], replace(plan, fmt="fp8")) == {}


def test_bits_of_a_target() -> None:
    """Engines have no sums of 16 bits; FP8 has no such weights."""
    bits = lambda **more: ExportOptions(**more).int8_weight_bits
    assert bits(precision="int8") == bits(precision="int8_fp16") == 7
    assert bits(precision="int8", target="tensorrt") == 8
    assert bits(precision="int8", weight_bits=8) == 8
    assert bits(precision="int8", target="tensorrt", weight_bits=7) == 7
    assert bits(precision="fp8") == bits(precision="fp32") == 8
