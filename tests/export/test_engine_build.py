"""Engines by the real TensorRT-RTX, which builds without a GPU: counts against the file's own bytes."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from save_deploy.bundle import model_spec
from save_deploy.errors import BackendError, ExportError
from save_deploy.export.engine import library, messages
from save_deploy.export.engine.build import BuildResult, build_engine
from save_deploy.export.engine.graph import content_hash, read_graph
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.receipt import Allow, failures
from save_deploy.export.fp16 import Fp16Plan, drop_unused_weights, to_fp16
from save_deploy.export.graph import save_graph
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import Forms
from save_deploy.export.quantize import find_sites, insert_qdq
from save_deploy.export.trace import graph_from_module
from save_deploy.partials import partial_folder
from save_deploy.runtime.engine_check import last_error_logger
from tests.conftest import make_tiny

RTX = pytest.importorskip("tensorrt_rtx", reason='no tensorrt_rtx: pip install "save-deploy[rtx]"')
L4 = BuildOptions(library="rtx", targets=("L4",))
DEPTH = 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model in fp32, fp16 and int8 with FP16 between."""
    folder = tmp_path_factory.mktemp("graphs")
    deploy = DeployModel(make_tiny(depth=DEPTH, global_blocks=(1,)), Forms().quantizable()).eval()
    names = [spec.name for spec in model_spec(deploy.config).inputs]
    pair = (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.rand(1, 128))
    found = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8")}
    save_graph(graph_from_module(deploy, pair, inputs=names, output="mask_logits"), found["fp32"])
    for name in ("fp16", "int8"):
        graph = ir.load(found["fp32"])
        if name == "int8":
            insert_qdq(graph, find_sites(deploy), {p.name: 4.0 for p in find_sites(deploy)})
        to_fp16(graph, Fp16Plan("fp16", ("Softmax",), (), 1, {}))
        drop_unused_weights(graph)
        save_graph(graph, found[name])
    return found


def attention_graph(path: Path, *, v_width: int = 32, dtype: int = TensorProto.FLOAT16) -> Path:
    """softmax(q k^T) v of computed q, k and v; values wider than keys are never fused."""
    rng = np.random.default_rng(0)
    real = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    weights = [
        numpy_helper.from_array(rng.normal(size=(32, n)).astype(real) / 8, f"w{i}")
        for i, n in enumerate((32, 32, v_width))
    ]
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [name], name=f"m.attn.{name}/matmul")
             for i, name in enumerate("qkv")]  # fmt: skip
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], name="m.attn/transpose", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="m.attn/matmul"),
        helper.make_node("Softmax", ["s"], ["p"], name="m.attn/softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="m.attn/matmul_2"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", dtype, [1, 2, 48, 32])],
        [helper.make_tensor_value_info("y", dtype, [1, 2, 48, v_width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def built(path: Path, out: Path, options: BuildOptions = L4, **more: Any) -> BuildResult:
    return build_engine(path, out / "engine", options, **more)


def generated(engine: Path, name: bytes = b"") -> int:
    """Generated kernels in an engine, counted in its bytes, which carry their descriptions."""
    return len(re.findall(rb"function=\{ name=" + name, engine.read_bytes()))


@pytest.fixture(scope="module")
def results(
    files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[BuildResult, list[str]]]:
    """Each built once, with what was said meanwhile."""
    found = {}
    for name, path in files.items():
        said: list[str] = []
        out = tmp_path_factory.mktemp(name)
        found[name] = built(path, out, on_line=said.append), said
    return found


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_tiny_model(
    files: dict[str, Path], results: dict[str, tuple[BuildResult, list[str]]], name: str
) -> None:
    result, said = results[name]
    receipt, graph = result.receipt, onnx.load(files[name]).graph
    softmaxes = sum(n.op_type == "Softmax" for n in graph.node)
    made_by = {o: n.op_type for n in graph.node for o in n.output}
    asked = sum(
        n.op_type == "MatMul" and made_by.get(n.input[0]) == "DequantizeLinear" for n in graph.node
    )
    assert receipt.attentions == softmaxes == DEPTH + 7
    assert receipt.fused == generated(result.engine, b"_gemm_mha_v2 ")
    assert receipt.fused == (0 if name == "fp32" else softmaxes)
    assert receipt.fp32_attentions == (softmaxes if name == "fp32" else 0)
    assert receipt.kernels_by_type["kgen"] == generated(result.engine)
    assert receipt.quantised_asked == receipt.quantised == asked
    assert bool(asked) == (name == "int8")
    assert sum(receipt.products.values()) == sum(
        n.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose") for n in graph.node
    )
    assert "not named in the log" not in receipt.products
    assert receipt.engine_bytes == result.engine.stat().st_size
    assert receipt.peak_bytes > 50e6 and receipt.activation_bytes and receipt.weights_bytes
    assert receipt.warnings == () and failures(receipt, Allow()) == []
    assert result.targets == ("SM89",) and result.version == RTX.__version__
    stages = [line for line in said if not line.endswith(" s")]  # a busy machine adds seconds
    assert stages == ["parsing", "optimizing", "writing"]
    assert {p.name for p in result.engine.parent.iterdir()} == {"engine"}
    named = {m for kernel in receipt.kernels for m in kernel.modules}
    assert {"patch_embed", "blocks.0.attn", "blocks.1.mlp.lin2"} <= named and "cast" not in named
    assert receipt.by_module()["blocks.1"] > 5


def test_type_of_matmuls(results: dict[str, tuple[BuildResult, list[str]]]) -> None:
    """In FP32 nothing is half; in FP16 nothing but sums after a normalization is FP32."""
    full = results["fp32"][0].receipt.products
    assert not [how for how in full if "fp16" in how]
    half = results["fp16"][0].receipt.products
    assert not [how for how in half if "fp32 x fp32" in how or how.endswith(" fp32")]


@pytest.mark.parametrize(("width", "dtype", "fused", "fails"), [
    (32, TensorProto.FLOAT16, 1, False),
    (48, TensorProto.FLOAT16, 0, True),
    (32, TensorProto.FLOAT, 0, False),
])  # fmt: skip
def test_unfused_attention_fails(
    width: int, dtype: int, fused: int, fails: bool, tmp_path: Path
) -> None:
    path = attention_graph(tmp_path / "a.onnx", v_width=width, dtype=dtype)
    receipt = built(path, tmp_path).receipt
    assert (receipt.attentions, receipt.fused) == (1, fused)
    assert receipt.unfused == (("m.attn/softmax",) if fails else ())
    assert bool(failures(receipt, Allow())) == fails
    assert failures(receipt, Allow(unfused=True)) == []


def changed(source: Path, out: Path, change: Any) -> Path:
    """A copy of an ONNX file after change(model, initializers by name)."""
    model = onnx.load(source)
    change(model, {w.name: w for w in model.graph.initializer})
    onnx.save(model, out)
    return out


@pytest.mark.slow
def test_scales_on_the_wrong_axis_are_reported(files: dict[str, Path], tmp_path: Path) -> None:
    """Per-channel scales along the summed axis: TensorRT builds it, and multiplies floats."""

    def spoil(model: Any, weights: dict[str, Any]) -> None:
        for node in model.graph.node:
            if node.name == "blocks.1.mlp.lin1/matmul/weight":
                rows = weights[node.input[0]].dims[0]
                for name, like in zip(node.input[1:], (0.01, 0), strict=True):
                    kind = numpy_helper.to_array(weights[name]).dtype
                    array = np.full(rows, like).astype(kind)
                    weights[name].CopyFrom(numpy_helper.from_array(array, name))
                node.attribute[0].i = 0

    path = changed(files["int8"], tmp_path / "axis.onnx", spoil)
    receipt = built(path, tmp_path).receipt
    assert receipt.dequantised == ("blocks.1.mlp.lin1/matmul",)
    assert receipt.quantised == receipt.quantised_asked - 1
    assert "blocks.1.mlp.lin1/matmul" in failures(receipt, Allow())[0]


def int32_bias(model: Any, weights: dict[str, Any]) -> None:
    node = next(n for n in model.graph.node if n.name == "blocks.1.mlp.lin1/add")
    index, name = next((i, n) for i, n in enumerate(node.input) if n in weights)
    bias = numpy_helper.to_array(weights[name])
    model.graph.initializer.extend([
        numpy_helper.from_array((bias * 1000).astype(np.int32), "numbers"),
        numpy_helper.from_array(np.array(0.001, bias.dtype), "scale"),
    ])  # fmt: skip
    dq = helper.make_node(
        "DequantizeLinear", ["numbers", "scale"], ["bias"], name="bias/dequantize"
    )
    node.input[index] = "bias"
    model.graph.node.insert(list(model.graph.node).index(node), dq)


def zero_point(model: Any, weights: dict[str, Any]) -> None:
    name = next(n for n in weights if n.endswith(".zero") and not weights[n].dims)
    weights[name].CopyFrom(numpy_helper.from_array(np.array(3, np.int8), name))


def mixed_types(model: Any, weights: dict[str, Any]) -> None:
    node = next(n for n in model.graph.node if n.name == "blocks.1.mlp.lin1/add")
    name = next(n for n in node.input if n in weights)
    array = numpy_helper.to_array(weights[name]).astype(np.float32)
    weights[name].CopyFrom(numpy_helper.from_array(array, name))


def no_operator(model: Any, weights: dict[str, Any]) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Gelu" and "mlp" in n.name)
    node.op_type = "Det"
    del node.attribute[:]


@pytest.mark.parametrize(
    ("change", "what", "where", "cure"),
    [
        (int32_bias, "quantized to INT32", "bias/dequantize [DequantizeLinear] of blocks.1.mlp.lin1",
         "biases in float"),
        (zero_point, "asymmetric", "[QuantizeLinear] of blocks.0.", "zero point 0"),
        (mixed_types, "two data types", "blocks.1.mlp.lin1/add [Add] of blocks.1.mlp.lin1", "cast"),
        (no_operator, "no such operator", "[Det] of blocks.0.mlp", "replace the operator"),
    ],
)  # fmt: skip
def test_parser_errors_name_node_and_module(
    files: dict[str, Path], change: Any, what: str, where: str, cure: str, tmp_path: Path
) -> None:
    path = changed(files["int8"], tmp_path / "bad.onnx", change)
    with pytest.raises(ExportError) as caught:
        built(path, tmp_path)
    error = caught.value
    assert what in error.what and where in error.got and cure in error.hint
    assert "/_src" not in error.got and "catchCudaError" not in str(error)
    assert {p.name for p in tmp_path.iterdir()} == {"bad.onnx"}


def test_unknown_parser_error_is_shown_as_it_is() -> None:
    graph = type("Facts", (), {"modules": {"n": "blocks.0"}})()
    told = [{"code": "INVALID_NODE", "text": "something new", "node": "n", "operator": "Foo"}]
    error = messages.parser_error(told, graph, "model.onnx")
    assert "something new" in error.got and "n [Foo] of blocks.0" in error.got


def worker() -> psutil.Process:
    children = psutil.Process().children(recursive=True)
    return next(c for c in children if "save_deploy.export.engine.worker" in " ".join(c.cmdline()))


@pytest.mark.parametrize(("number", "cause"), [
    (signal.SIGKILL, "out of memory"), (signal.SIGSEGV, "one target"),
])  # fmt: skip
def test_killed_worker_leaves_nothing(
    files: dict[str, Path], number: signal.Signals, cause: str, tmp_path: Path
) -> None:
    (tmp_path / "engine").write_bytes(b"the engine before")

    def kill(stage: str) -> None:
        if stage == "optimizing":
            os.kill(worker().pid, number)

    with pytest.raises(ExportError, match="ended while optimizing; nothing was written") as caught:
        built(files["fp32"], tmp_path, on_line=kill)
    assert f"signal {number.value} ({number.name})" in caught.value.got
    assert cause in caught.value.hint
    assert {p.name for p in tmp_path.iterdir()} == {"engine"}
    assert (tmp_path / "engine").read_bytes() == b"the engine before"


def test_interrupt_ends_the_worker(files: dict[str, Path], tmp_path: Path) -> None:
    running = []

    def stop(stage: str) -> None:
        if stage == "optimizing":
            running.append(worker())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(files["fp32"], tmp_path, on_line=stop)
    assert not running[0].is_running() and not list(tmp_path.iterdir())


def test_exit_code_and_last_lines() -> None:
    error = messages.crash(3, ["first", "std::bad_alloc"], "model.onnx", "parsing")
    assert "out of memory, exit code 3" in error.got and "std::bad_alloc" in error.got
    assert "signal 9 (SIGKILL)" in messages.crash(-9, [], "m", "parsing").got


def test_leftovers_of_killed_processes_go(files: dict[str, Path], tmp_path: Path) -> None:
    dead = tmp_path / ".engine.partial-0a1b2c3d"
    dead.mkdir()
    with partial_folder(tmp_path / "engine") as alive:
        built(attention_graph(tmp_path / "a.onnx"), tmp_path)
        assert not dead.exists() and alive.exists()


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph at all")
    for name in ("bad.onnx", "missing.onnx"):
        with pytest.raises(ExportError, match="not a readable ONNX file"):
            built(tmp_path / name, tmp_path)


def test_fp32_on_turing_is_refused_before_building(files: dict[str, Path], tmp_path: Path) -> None:
    turing = BuildOptions(library="rtx", targets=("T4",))
    with pytest.raises(ExportError, match="Turing: FP32 GEMM is not supported"):
        built(files["fp32"], tmp_path, turing, on_line=lambda _: pytest.fail("it was started"))
    assert built(attention_graph(tmp_path / "a.onnx"), tmp_path, turing).targets == ("SM75",)


@pytest.mark.slow
def test_options_reach_the_builder(tmp_path: Path) -> None:
    """Targets change the header's mask; the other options are accepted."""
    path = attention_graph(tmp_path / "a.onnx")
    options = BuildOptions(library="rtx", targets=("8.6", "RTX 5090"), workspace_mib=64,
                           optimization_level=1)  # fmt: skip
    engine = built(path, tmp_path, options).engine
    assert engine.read_bytes()[32] == 0x4 | 0x10
    assert built(path, tmp_path).engine.read_bytes()[32] == 0x8


def test_no_tf32() -> None:
    """A fresh configuration allows it; ours leaves precision to the graph."""
    builder = RTX.Builder(last_error_logger("tensorrt_rtx"))
    tf32 = RTX.BuilderFlag.TF32
    assert builder.create_builder_config().get_flag(tf32)
    options = replace(L4, optimization_level=2).to_dict()
    config = library.make_config(RTX, builder, options)
    assert not config.get_flag(tf32) and config.flags == 0


@pytest.mark.slow
def test_peak_memory_is_the_workers(tmp_path: Path) -> None:
    """Linux carries a parent's peak into its children's ru_maxrss."""
    ballast = np.ones(100_000_000)
    receipt = built(attention_graph(tmp_path / "a.onnx"), tmp_path).receipt
    assert 50e6 < receipt.peak_bytes < ballast.nbytes


def test_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError) as caught:
        built(attention_graph(tmp_path / "a.onnx"), tmp_path)
    assert caught.value.exit_code == 3 and "save-deploy[rtx]" in caught.value.hint


@pytest.mark.slow
def test_external_weights(files: dict[str, Path], tmp_path: Path) -> None:
    """They are found, and are part of the content hash."""
    model = onnx.load(files["fp16"])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data",
              size_threshold=64)  # fmt: skip
    before = content_hash(tmp_path / "m.onnx")
    assert built(tmp_path / "m.onnx", tmp_path).receipt.fused == DEPTH + 7
    data = bytearray((tmp_path / "m.onnx.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "m.onnx.data").write_bytes(data)
    assert content_hash(tmp_path / "m.onnx") != before


def test_facts_of_a_graph(tmp_path: Path) -> None:
    """Also without stored types of the values between."""
    facts = read_graph(attention_graph(tmp_path / "a.onnx"))
    assert [p.dtype for p in facts.matmuls] == ["fp16"] * 5 and not facts.fp8
    (found,) = facts.attentions
    assert (found.scores, found.values) == ("m.attn/matmul", "m.attn/matmul_2")
    assert facts.inputs == ("x fp16 (1, 2, 48, 32)",) and facts.precision == "fp16 5"
