"""What ran in INT8 is told from what only looks like it, on products built for either case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from save_deploy.bundle import Arrays
from save_deploy.errors import BackendError
from save_deploy.runtime.kernels import _belongs, _check, _Executed, executed_kernels

SIDE = 16
PRODUCT, PLAIN = "lin/matmul", "lin/matmul_2"
INPUTS: Arrays = {"x": np.random.default_rng(1).normal(size=(1, 8, SIDE)).astype(np.float32)}


def write_graph(
    path: Path, *, bias_rank: int | None = 3, relu: bool = False, int8: bool = True
) -> Path:
    """x (1,8,16) -> a product, Q/DQ when int8, with bias or Relu -> a float product `_2`."""
    rng = np.random.default_rng(0)
    make, tensor = helper.make_node, numpy_helper.from_array
    constants = [
        tensor(np.array(0.02, np.float32), "x_scale"),
        tensor(np.array(128, np.uint8), "x_zero"),
        tensor(rng.integers(-127, 128, (SIDE, SIDE), dtype=np.int8), "w_q"),
        tensor(np.full(SIDE, 0.01, np.float32), "w_scale"),
        tensor(np.zeros(SIDE, np.int8), "w_zero"),
        tensor(rng.normal(size=(SIDE, SIDE)).astype(np.float32), "v"),
    ]
    nodes = []
    if int8:
        nodes += [
            make("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"], name="quantize"),
            make("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"], name="dequantize"),
            make("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w_dq"], name="w", axis=1),
        ]
    sides = ["x_dq", "w_dq"] if int8 else ["x", "v"]
    nodes.append(make("MatMul", sides, ["y"], name=PRODUCT))
    last = "y"
    if bias_rank:
        bias = rng.normal(size=(1,) * (bias_rank - 1) + (SIDE,)).astype(np.float32)
        constants.append(tensor(bias, "b"))
        nodes.append(make("Add", [last, "b"], ["y_b"], name="lin/add"))
        last = "y_b"
    if relu:
        nodes.append(make("Relu", [last], ["y_r"], name="lin/relu"))
        last = "y_r"
    nodes.append(make("MatMul", [last, "v"], ["z"], name=PLAIN))
    nodes.append(make("Softmax", ["z"], ["out"], name="last"))
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, SIDE])
    graph = helper.make_graph(nodes, "products", [info("x")], [info("out")], constants)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_onnxruntime_int8(path: Path) -> None:
    check = executed_kernels("onnxruntime", write_graph(path), [PRODUCT], INPUTS, threads=1)
    assert (check.asked, check.int8, check.not_int8) == (1, 1, ())
    assert check.kinds == {"MatMulIntegerToFloat": 1}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Gemm", {"bias_rank": 1}), ("MatMul", {"bias_rank": None, "relu": True})],
)
def test_onnxruntime_float_twin(path: Path, kind: str, options: dict[str, int]) -> None:
    """The same Q/DQ pairs, but ONNX Runtime multiplies in float32."""
    write_graph(path, **options)  # type: ignore[arg-type]
    check = executed_kernels("onnxruntime", path, [PRODUCT], INPUTS, threads=1)
    assert (check.int8, check.not_int8) == (0, (f"{PRODUCT}: {kind} (float32)",))
    assert check.kinds == {kind: 1}


@pytest.mark.parametrize(
    "options", [{}, {"bias_rank": 1}, {"bias_rank": None, "relu": True}], ids=str
)
def test_openvino_int8(path: Path, options: dict[str, int]) -> None:
    pytest.importorskip("openvino")
    write_graph(path, **options)  # type: ignore[arg-type]
    check = executed_kernels("openvino", path, [PRODUCT], INPUTS, threads=1)
    assert (check.int8, check.not_int8) == (1, ())
    assert [kind.lower().endswith("i8") for kind in check.kinds] == [True]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_float_products_are_told(path: Path, backend: str) -> None:
    """`lin/matmul_2` beside INT8 `lin/matmul`, a name that is nowhere, and a graph without Q/DQ."""
    pytest.importorskip(backend)
    products = [PRODUCT, PLAIN, "lin/matmul_3"]
    check = executed_kernels(backend, write_graph(path), products, INPUTS, threads=1)
    assert (check.asked, check.int8) == (3, 1)
    plain, missing = check.not_int8
    assert plain.startswith(f"{PLAIN}: ") and plain.rstrip(")").endswith(("float32", "_f32"))
    assert missing == "lin/matmul_3: not found"
    assert sum(check.kinds.values()) == 3 and check.kinds["not found"] == 1
    write_graph(path, int8=False, bias_rank=None, relu=True)
    assert executed_kernels(backend, path, [PRODUCT], INPUTS, threads=1).int8 == 0


def test_names_match_whole() -> None:
    for executed in ("x/matmul", "x/matmul/MatMulAddFusion", "fused x/matmul/", "x/matmul:1"):
        assert _belongs(executed, "x/matmul")
    for executed in ("x/matmul_2", "x/matmul2/Fusion", "x/matmul.a", "y/x/matmul", "x/mat"):
        assert not _belongs(executed, "x/matmul")


def test_a_float_part_decides() -> None:
    """A product cut into several kernels, in any order, is INT8 only as a whole."""
    parts = [
        _Executed("x/a", "i8", "MatMul (i8)", True),
        _Executed("x/b", "f", "MatMul (f)", False),
    ]
    for executed in (parts, parts[::-1]):
        check = _check("openvino", ["x"], executed)
        assert (check.int8, check.not_int8, check.kinds) == (0, ("x: MatMul (f)",), {"f": 1})


def test_json_and_nothing_asked(path: Path) -> None:
    check = executed_kernels("onnxruntime", write_graph(path), [], INPUTS, threads=1)
    expected = {"backend": "onnxruntime", "asked": 0, "int8": 0, "not_int8": [], "kinds": {}}
    assert json.loads(json.dumps(check.to_dict())) == expected


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_cannot_run_is_refused(path: Path, tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    write_graph(path)
    with pytest.raises(BackendError, match=f"{backend} cannot run model.onnx"):
        executed_kernels(backend, path, [PRODUCT], {"x": INPUTS["x"][:, :, :3]}, threads=1)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BackendError, match=f"{backend} cannot run model.onnx"):
        executed_kernels(backend, path, [PRODUCT], INPUTS, threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_backend_must_be_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"unknown backend(.|\n)*onnxruntime, openvino"):
        executed_kernels("auto", path, [], INPUTS)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendError, match="not installed"):
        executed_kernels("openvino", path, [], INPUTS)
