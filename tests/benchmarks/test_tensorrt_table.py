"""The script behind the table of docs/tensorrt.md, on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto

from tests.benchmarks import tensorrt_table
from tests.benchmarks.tensorrt_table import HEADS, Built
from tests.conftest import TINY, make_tiny

# MatMuls of a tiny encoder in the form for TensorRT: in each block qkv and proj, two of the MLP, one
# for the adapter's downward and one for its upward convolution
QUANTIZED = TINY["depth"] * (2 + 2 + 1 + 1)


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tensorrt_table, "_model", lambda preset, res: make_tiny(res=res))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # the script sets one


def exported(graph: str, precision: str, path: Path) -> onnx.ModelProto:
    facts = tensorrt_table.export("tiny", 64, graph, precision, path)
    assert set(facts) == {"export_s", "export_gb"} and min(facts.values()) > 0
    return onnx.load(path)


def weight_types(model: onnx.ModelProto) -> set[int]:
    """Types of the float weights that have more than one element."""
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    large = [w for w in model.graph.initializer if len(w.dims) > 1]
    return {w.data_type for w in large} & floats


def quantized_matmuls(model: onnx.ModelProto) -> int:
    """MatMul nodes both of whose inputs come from DequantizeLinear."""
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    matmuls = [node for node in model.graph.node if node.op_type == "MatMul"]
    return sum({made_by.get(i) for i in node.input} == {"DequantizeLinear"} for node in matmuls)


@pytest.mark.thorough
def test_naive_fp16_has_half_weights(tmp_path: Path) -> None:
    model = exported("naive", "fp16", tmp_path / "model.onnx")
    assert weight_types(model) == {TensorProto.FLOAT16}


@pytest.mark.thorough
def test_merged_bf16_has_no_half_weights_and_no_pairs(tmp_path: Path) -> None:
    model = exported("merged", "bf16", tmp_path / "model.onnx")
    assert weight_types(model) == {TensorProto.BFLOAT16}
    assert quantized_matmuls(model) == 0


@pytest.mark.thorough
def test_merged_int8_quantizes_every_product_of_the_encoder(tmp_path: Path) -> None:
    model = exported("merged", "int8", tmp_path / "model.onnx")
    assert quantized_matmuls(model) == QUANTIZED


def test_a_line_has_a_cell_for_each_head() -> None:
    line = Built("vit_b", 256, "merged", "int8", quantized=71, quantized_asked=72)
    assert len(line.cells) == len(HEADS)
    assert dict(zip(HEADS, line.cells, strict=True))["INT8/FP8 MatMuls"] == "71/72"
    failed = Built("vit_b", 256, "naive", "bf16", error="no BF16 transposed convolution")
    assert len(failed.cells) == len(HEADS)
    assert failed.cells[4] == "does not build: no BF16 transposed convolution"


@pytest.mark.thorough
def test_a_tiny_engine_is_built(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason='no tensorrt_rtx: pip install "save-deploy[rtx]"')
    path = tmp_path / "model.onnx"
    exported("merged", "fp16", path)
    built = tensorrt_table._build(Built("tiny", 64, "merged", "fp16"), path, "SM86")
    # three encoder blocks; the decoder has seven attentions
    assert built.error == "" and built.attentions == TINY["depth"] + 7
    assert built.kernels > 0 and built.engine_mb > 0
