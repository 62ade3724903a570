"""What TensorRT says when it refuses a graph, and what becomes of it: each known text is provoked.

By a build of a few nodes where the library says it; by the text as it was seen where that would take a
bias, a scale or an attention of a whole model (test_engine_build.py) or another machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from save_deploy.errors import ExportError
from save_deploy.export.engine import messages
from save_deploy.export.engine.build import build_engine
from save_deploy.export.engine.graph import GraphFacts
from save_deploy.export.engine.options import BuildOptions

FACTS = GraphFacts((), (), (), False, (), (), {"n": "blocks.0"})
HALF, BF16, FULL = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT


def graph(
    nodes: list[Any], x: tuple[int, Any], y: tuple[int, Any], *weights: Any, opset: int = 22
) -> Any:
    """x, y: data type and shape of the input and the output."""
    inputs = [helper.make_tensor_value_info("x", *x)]
    outputs = [helper.make_tensor_value_info("y", *y)]
    made = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("custom", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def weight(name: str, *shape: int, dtype: int = FULL) -> Any:
    return helper.make_tensor(name, dtype, shape, np.ones(int(np.prod(shape)), np.float32))


def node(operator: str, *inputs: str, **more: Any) -> Any:
    return helper.make_node(operator, list(inputs), ["y"], name="n", **more)


def uint8_transpose() -> Any:
    return graph(
        [node("Transpose", "x", perm=[0, 2, 1])],
        (TensorProto.UINT8, [1, 4, 8]), (TensorProto.UINT8, [1, 8, 4]),
    )  # fmt: skip


def bf16_deconvolution() -> Any:
    return graph(
        [node("ConvTranspose", "x", "w", kernel_shape=[2, 2], strides=[2, 2])],
        (BF16, [1, 8, 4, 4]), (BF16, [1, 8, 8, 8]), weight("w", 8, 8, 2, 2, dtype=BF16),
    )  # fmt: skip


def antialiased_resize() -> Any:
    scales = numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "scales")
    return graph(
        [node("Resize", "x", "", "scales", mode="linear", antialias=1)],
        (FULL, [1, 3, 8, 8]), (FULL, [1, 3, 4, 4]), scales,
    )  # fmt: skip


def dynamic_shape() -> Any:
    return graph([node("Relu", "x")], (FULL, ["batch", 4]), (FULL, ["batch", 4]))


def unknown_operator() -> Any:
    return graph([node("Nothing", "x", domain="custom")], (FULL, [4]), (FULL, [4]))


def fp32_product() -> Any:
    return graph([node("MatMul", "x", "w")], (FULL, [1, 32, 32]), (FULL, [1, 32, 32]),
                 weight("w", 32, 32))  # fmt: skip


def bf16_product() -> Any:
    return graph([node("MatMul", "x", "w")], (BF16, [1, 32, 32]), (BF16, [1, 32, 32]),
                 weight("w", 32, 32, dtype=BF16))  # fmt: skip


def fp8_product() -> Any:
    fp8 = TensorProto.FLOAT8E4M3FN
    scale, zero = numpy_helper.from_array(np.array(0.1, np.float16), "s"), weight("z", dtype=fp8)
    pair = lambda name: [
        helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"], name=f"{name}/q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", "s"], [f"{name}_dq"], name=f"{name}/dq"),
    ]
    nodes = [*pair("x"), *pair("w"), node("MatMul", "x_dq", "w_dq")]
    return graph(nodes, (HALF, [1, 32, 32]), (HALF, [1, 32, 32]),
                 weight("w", 32, 32, dtype=HALF), scale, zero)  # fmt: skip


@pytest.mark.parametrize(("make", "target", "what", "cure"), [
    (uint8_transpose, "SM86", "does not support this operator on the uint8", "`normalise`"),
    (bf16_deconvolution, "SM86", "no BF16 transposed convolution", "in FP16"),
    (antialiased_resize, "SM86", "with antialiasing", "resize before"),
    (dynamic_shape, "SM86", "dynamic shapes", "fixes all shapes"),
    (unknown_operator, "SM86", "no such operator", "replace the operator"),
    (fp32_product, "SM75", "cannot build", "omit SM75"),
    (bf16_product, "SM75", "cannot build", "BF16 needs SM80"),
    (fp8_product, "SM86", "cannot build", "FP8 needs SM89"),
])  # fmt: skip
def test_by_a_build(
    make: Callable[[], Any], target: str, what: str, cure: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The library's own words, reached past our own checks of targets."""
    pytest.importorskip("tensorrt_rtx", reason='no tensorrt_rtx: pip install "save-deploy[rtx]"')
    monkeypatch.setattr(BuildOptions, "fitted", lambda self, *_, **__: replace(self, library="rtx"))
    onnx.save(make(), tmp_path / "model.onnx")
    with pytest.raises(ExportError) as caught:
        build_engine(tmp_path / "model.onnx", tmp_path / "engine",
                     BuildOptions(library="rtx", targets=(target,)))  # fmt: skip
    error = caught.value
    assert what in error.what and cure in error.hint and error.got, str(error)
    assert "catchCudaError" not in str(error)
    assert not (tmp_path / "engine").exists()


# Texts as the library gave them, and a part of the cure
SEEN = (
    ("b_DQ: input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8", "in float"),
    ("Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported",
     "zero point 0"),
    ("IShuffleLayer: first input has type UInt8", "`normalise`"),
    ("IMatrixMultiplyLayer must have same input types", "casts"),
    ("INormalizationLayer input and scale must have identical types", "casts"),
    ("Could not infer output types for operation:    31: deconv: y-(bf16[1,8,8,8]", "in FP16"),
    ("AttentionInput: Key and Value must have the same shape", "--target tensorrt"),
    ("Antialiasing is not supported currently", "resize before"),
    ("Network has dynamic or shape inputs, but no optimization profile has been defined",
     "fixes all shapes"),
    ("Plugin not found, are the plugin name, version, and namespace correct?", "replace"),
    ("UNSUPPORTED_NODE: No importer registered for op: Det", "replace"),
    ("Turing (SM75): FP32 GEMM is not supported", "omit SM75"),
    ("Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: "
     "fp8_e4m3", "SM89"),
    ("Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16",
     "SM80"),
    ("MyelinCheckException: composite_op->is_decomposable() failed", "export in FP16"),
    ("Unable to load library: libnvinfer_lean.so.1", "--version-compatible"),
    ("cudaErrorMemoryAllocation: out of memory", "--workspace"),
    ("std::bad_alloc", "--workspace"),
)  # fmt: skip


@pytest.mark.parametrize(("text", "cure"), SEEN)
def test_by_its_text(text: str, cure: str) -> None:
    """From the parser and from the builder alike: which of them refuses changes between versions."""
    told = [{"code": "INVALID_NODE", "text": text, "node": "n", "operator": "Foo"}]
    parsed = messages.parser_error(told, FACTS, "model.onnx")
    built = messages.builder_error(("something before it", text), "model.onnx")
    assert cure in parsed.hint and "n [Foo] of blocks.0" in parsed.got
    assert cure in built.hint and text.split("(")[0][:30] in built.got
    assert parsed.what.partition(": ")[2] == built.what.partition(": ")[2]


def test_every_pattern_is_provoked() -> None:
    import re

    unseen = [p for p, *_ in messages._KNOWN if not any(re.search(p, text) for text, _ in SEEN)]
    assert unseen == []


def test_an_unknown_text_is_passed_on() -> None:
    error = messages.builder_error(("something new", "and more"), "model.onnx")
    assert error.got == "something new" and "one target" in error.hint
    assert messages.builder_error((), "model.onnx").got == "no message"
