"""The list of kernels in a build log, and the receipt made of it: values against hand-made lines."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from save_deploy.export.engine.graph import Attention, GraphFacts, MatMul
from save_deploy.export.engine.layers import BuildLog, operands, read_inspector, read_log
from save_deploy.export.engine.receipt import Allow, Receipt, failures, make_receipt


def tensor(dtype: str, *dims: int) -> str:
    shape = ",".join(map(str, dims))
    return (f"{{ Name: t_myl0, Dimensions: [{shape}], Strides: [{shape}], StrideOrder: [1,0], "
            f"Datatype: {dtype}, Format: (Arbitrary) Format with stride order = [1,0] }}")  # fmt: skip


def line(name: str, kind: str, inputs: str, constants: str, outputs: str, *nodes: str) -> str:
    metadata = "".join(f"[ONNX Layer: {n}]" for n in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {inputs}], Constants: [ {constants}], "
        f"Outputs: [ {outputs}], TacticName: {name}_0x1, StreamId: 0, "
        f"Metadata: {metadata}"
    )


HALF, WEIGHT = tensor("Half", 16, 32), tensor("Half", 32, 96)
SCALARS = f"{tensor('Float', 1)}, {tensor('Float', 1)}"
GEMM = line("b.0.qkv/matmul_myl0_1", "gemm", HALF, f"{WEIGHT}, {SCALARS}", HALF, "b.0.qkv/matmul")
INT8 = line(
    "b.0.proj/matmul_myl0_2", "gemm", tensor("Int8", 16, 32),
    f"{tensor('Int8', 32, 32)}, {SCALARS}", HALF, "b.0.proj/matmul", "x/dequantize",
)  # fmt: skip
LOST = line(
    "__myl_CastMulCastMulCastFc_myl0_3", "runtime_fusion", tensor("Int8", 16, 32),
    f"{tensor('Half', 32, 1)}, {tensor('Int8', 32, 96)}", HALF, "b.1.proj/matmul",
)  # fmt: skip
FOLDED = line(
    "__myl_CastMulFc_myl0_3", "runtime_fusion", f"{tensor('Int8', 16, 32)}, {WEIGHT}", "", HALF,
    "b.1.proj/matmul",
)  # fmt: skip
MHA = line(
    "_gemm_mha_v2_myl0_4", "kgen", f"{HALF}, {HALF}, {HALF}", "", HALF,
    "b.0/matmul_2", "b.0/softmax", "b.0/add", "b.0/matmul",
)  # fmt: skip
SOFTMAX = line("__myl_MaxrSubExpSumDivMul_myl0_5", "kgen", HALF, "", HALF, "b.0/softmax")
COPY = line("__myl_ReshTran_myl0_6", "kgen", HALF, "", HALF, "b.0/transpose")
CAST = line("__myl_ReshCast_myl0_7", "kgen", HALF, "", tensor("Float", 16, 32), "b.0/cast")
SIGNAL = ("Name: e_myl0_8, LayerType: signal, Inputs: [], Constants: [], Outputs: [], "
          "TacticName: , StreamId: 0, EventId: 1, Metadata: ")  # fmt: skip


def log(*lines: str) -> BuildLog:
    return read_log(
        "[INFO] Total Activation Memory: 18394112 bytes\n"
        "[INFO] Total Weights Memory: 23143808 bytes\n"
        "[WARNING] Detected layernorm nodes in FP16\n[WARNING] Detected layernorm nodes in FP16\n"
        "[ERROR] [checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)\n"
        "Padding mode: NOTSET\n[VERBOSE] Layers:\n" + "\n".join(lines)
        + "\n\nI/O Tensors:\n Name: image, IOMode: Input, DataType: UInt8\n"
    )  # fmt: skip


def matmul(node: str, dtype: str = "fp16", quantized: bool = False) -> MatMul:
    return MatMul(node, node.split("/")[0], "MatMul", dtype, quantized)


def facts(*matmuls: MatMul, attention: str = "") -> GraphFacts:
    found = (Attention("b.0", "b.0/matmul", "b.0/softmax", "b.0/matmul_2", attention),)
    modules = {"b.0.qkv/matmul": "b.0.qkv", "b.0/softmax": "b.0", "b.0/cast": ""}
    return GraphFacts(matmuls, found if attention else (), (), False, (), (), modules)


def receipt(graph: GraphFacts, *lines: str) -> Receipt:
    return make_receipt(graph, log(*lines), engine_bytes=10, build_s=1.234, peak_bytes=20, rtx=True)


def test_log() -> None:
    found = log(GEMM, SIGNAL, MHA)
    assert [k.type for k in found.kernels] == ["gemm", "kgen"] and found.synchronisations == 1
    assert (found.activation_bytes, found.weights_bytes) == (18394112, 23143808)
    assert found.warnings == ("Detected layernorm nodes in FP16",) and found.errors == ()
    gemm, mha = found.kernels
    assert gemm.nodes == ("b.0.qkv/matmul",) and gemm.tactic == "b.0.qkv/matmul_myl0_1_0x1"
    assert gemm.inputs[0].shape == (16, 32) and gemm.outputs[0].dtype == "fp16"
    assert len(gemm.constants) == 3 and operands(gemm) == ("fp16", "fp16")
    assert mha.nodes == ("b.0/matmul_2", "b.0/softmax", "b.0/add", "b.0/matmul")


def test_steps_of_generated_kernels() -> None:
    kernels = log(COPY, LOST, MHA, GEMM).kernels
    assert kernels[0].steps == ("Resh", "Tran")
    assert kernels[1].steps == ("Cast", "Mul", "Cast", "Mul", "Cast", "Fc")
    assert kernels[2].steps == kernels[3].steps == ()


def test_a_log_without_kernels_fails() -> None:
    made = receipt(facts(matmul("b.0.qkv/matmul")))
    (problem,) = failures(made, Allow())
    assert "no kernels" in problem and "--allow-unproven" in problem
    assert failures(made, Allow(unproven=True)) == []
    assert any("1 MatMuls" in line for line in made.unknown)


def test_what_no_kernel_names_is_unknown_not_wrong() -> None:
    """As full TensorRT may do: neither dequantized nor unfused, counted and failed apart."""
    asked = (matmul("b.0.proj/matmul", quantized=True), matmul("b.9.proj/matmul", quantized=True))
    graph = facts(*asked, matmul("b.8.proj/matmul"), attention="fp16")
    made = receipt(graph, INT8)
    assert (made.quantised_asked, made.quantised, made.dequantised) == (2, 1, ())
    assert (made.fused, made.unfused) == (0, ())
    assert made.unproven == ("b.9.proj/matmul", "b.0/softmax")
    assert any("kernels of 2 MatMuls" in line for line in made.unknown)
    (problem,) = failures(made, Allow(dequantised=True, unfused=True))
    assert "no kernel names: 2: b.9.proj/matmul, b.0/softmax (--allow-unproven)" in problem
    assert failures(made, Allow(unproven=True)) == []
    assert receipt(facts(*asked[:1], attention="fp16"), INT8, MHA).unproven == ()


def test_matmuls_and_moves() -> None:
    made = receipt(facts(matmul("b.0.qkv/matmul")), GEMM, COPY, CAST, SIGNAL)
    assert made.kernels_by_type == {"gemm": 1, "kgen": 2} and made.synchronisations == 1
    assert made.products == {"gemm fp16 x fp16": 1}
    assert (made.casts, made.layout_copies) == (1, 1)
    assert made.kernels[0].modules == ("b.0.qkv",) and made.kernels[2].modules == ("model",)
    assert made.by_module() == {"b.0": 1, "model": 2}
    assert failures(made, Allow()) == []


def test_quantized_matmuls() -> None:
    asked = (matmul("b.0.proj/matmul", quantized=True), matmul("b.1.proj/matmul", quantized=True))
    for lost in (LOST, FOLDED):
        made = receipt(facts(*asked), INT8, lost)
        assert (made.quantised_asked, made.quantised) == (2, 1)
        assert made.dequantised == ("b.1.proj/matmul",)
        (problem,) = failures(made, Allow())
        assert "1 of 2" in problem and "b.1.proj/matmul" in problem
        assert failures(made, Allow(dequantised=True)) == []
        assert failures(made, Allow(unfused=True, fp32=True)) == [problem]
    good = receipt(facts(asked[0]), INT8)
    assert good.dequantised == () and failures(good, Allow()) == []


def test_attention() -> None:
    fused = receipt(facts(attention="fp16"), MHA)
    assert (fused.attentions, fused.fused, fused.unfused) == (1, 1, ())
    assert failures(fused, Allow()) == []
    split = receipt(facts(attention="fp16"), SOFTMAX)
    assert (split.fused, split.unfused) == (0, ("b.0/softmax",))
    assert "not one kernel: 1 of 1" in failures(split, Allow())[0]
    assert failures(split, Allow(unfused=True)) == []


def test_fp32_attention_is_stated_not_failed() -> None:
    made = receipt(facts(attention="fp32"), SOFTMAX)
    assert (made.fp32_attentions, made.fused, made.unfused) == (1, 0, ())
    assert failures(made, Allow()) == []


def test_softmax_outside_of_attention() -> None:
    graph = replace(facts(), plain_softmax=("head/softmax",))
    made = receipt(graph, GEMM)
    assert "head/softmax" in failures(made, Allow())[0]
    assert failures(made, Allow(unfused=True)) == []


@pytest.mark.parametrize(("dtype", "quantized", "fails"), [
    ("fp16", False, True), ("bf16", False, True), ("fp16", True, True), ("fp32", False, False),
])  # fmt: skip
def test_fp32_where_less_was_asked(dtype: str, quantized: bool, fails: bool) -> None:
    full = GEMM.replace("Half", "Float")
    made = receipt(facts(matmul("b.0.qkv/matmul", dtype, quantized)), full)
    problems = failures(made, Allow(dequantised=True))
    assert bool(problems) == fails and bool(made.fp32_built) == fails
    assert failures(made, Allow(fp32=True, dequantised=True)) == []


def test_receipt_survives_json() -> None:
    made = receipt(facts(matmul("b.0.qkv/matmul"), attention="fp16"), GEMM, SOFTMAX, CAST)
    assert Receipt.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_inspector() -> None:
    """The documented layout; no GPU has shown it to us."""
    layers = [
        "name only",
        {
            "Name": "a", "LayerType": "gemm", "TacticName": "t",
            "Inputs": [{"Dimensions": [16, 32], "Format/Datatype": "Half"}],
            "Outputs": [{"Dimensions": [16, 96], "Datatype": "FP32"}],
            "Metadata": "[ONNX Layer: x/matmul]\u001e[ONNX Layer: x/add]",
        },
        {"Name": "s", "LayerType": "signal"},
    ]  # fmt: skip
    (kernel,) = read_inspector(json.dumps({"Layers": layers}))
    assert kernel.nodes == ("x/matmul", "x/add") and kernel.type == "gemm"
    assert (kernel.inputs[0].dtype, kernel.outputs[0].dtype) == ("fp16", "fp32")
    assert kernel.inputs[0].shape == (16, 32)
