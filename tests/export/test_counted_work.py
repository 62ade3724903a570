"""What a frame costs, counted in the written graphs: products, bytes of weights, operators.

Times say little on a busy machine; these numbers are the same everywhere. More of anything than is
written here makes a model slower or larger: whoever means it writes the new number. Fewer operators are
welcome.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from save_deploy.bundle import GRAPHS, Manifest
from save_deploy.export.bench_graphs import write_variants


@dataclass(frozen=True)
class Work:
    """Of one model graph: multiply-accumulates of a frame, bytes of the float weights, operators."""

    macs: int
    weight_bytes: int
    operators: dict[str, int]


def counted(path: Path) -> Work:
    """Count by the shapes in the file alone."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    shapes = {name: values.shape for name, values in weights.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return Work(
        macs=sum(_macs(node, shapes) for node in graph.node),
        weight_bytes=sum(w.nbytes for w in weights.values() if w.dtype.kind == "f"),
        operators=dict(Counter(node.op_type for node in graph.node)),
    )


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
        return 0
    left, right, out = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    assert min(*left, *right, *out) > 0, f"a shape of {node.name} is not known"
    if node.op_type == "ConvTranspose":  # weights (in, out / group, kh, kw), once per input pixel
        return math.prod(left) * math.prod(right[1:])
    if node.op_type == "Conv":  # weights (out, in / group, kh, kw), once per output pixel
        return math.prod(out) * math.prod(right[1:])
    return math.prod(out) * left[-1]


def more_than(found: Work, written: Work) -> list[str]:
    """What there is more of than was written."""
    ours = {"macs": found.macs, "weight_bytes": found.weight_bytes, **found.operators}
    allowed = {"macs": written.macs, "weight_bytes": written.weight_bytes, **written.operators}
    return [f"{k}: {n} > {allowed.get(k, 0)}" for k, n in ours.items() if n > allowed.get(k, 0)]


TINY_WORK = Work(
    macs=237_676_544,
    weight_bytes=17_433_792,
    operators={
        "Add": 79,
        "Cast": 1,
        "Concat": 2,
        "Conv": 4,
        "ConvTranspose": 2,
        "Gather": 3,
        "Gelu": 7,
        "Gemm": 10,
        "LayerNormalization": 18,
        "MatMul": 74,
        "Mul": 2,
        "ReduceMean": 2,
        "ReduceSum": 1,
        "Relu": 10,
        "Reshape": 57,
        "Resize": 1,
        "Sigmoid": 2,
        "Slice": 1,
        "Softmax": 9,
        "Transpose": 53,
        "Unsqueeze": 11,
    },
)
VIT_T_WORK = Work(
    macs=1_154_141_184,
    weight_bytes=21_939_200,
    operators={
        "Add": 147,
        "Cast": 53,
        "Concat": 14,
        "Conv": 8,
        "ConvTranspose": 6,
        "Gather": 7,
        "Gelu": 11,
        "Gemm": 18,
        "LayerNormalization": 30,
        "MatMul": 162,
        "Mul": 6,
        "Pad": 24,
        "ReduceMean": 6,
        "ReduceSum": 1,
        "Relu": 22,
        "Reshape": 249,
        "Resize": 1,
        "Sigmoid": 6,
        "Slice": 81,
        "Softmax": 25,
        "Transpose": 189,
        "Unsqueeze": 51,
    },
)


def test_work_of_the_tiny_bundle(bundle_fp32: Path) -> None:
    found = counted(bundle_fp32 / GRAPHS[0])
    assert more_than(found, TINY_WORK) == []
    # the exporter counts in the model, not in the file
    assert found.macs == TINY_WORK.macs == Manifest.read(bundle_fp32).merge["macs_after"]


@pytest.mark.slow
def test_an_unmerged_graph_is_more_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The twin: the eager model's plain export."""
    subject, files = write_variants(
        ["naive"], tmp_path, checkpoint=tiny_checkpoint, sam=None, res=224, batch=1
    )
    found = counted(files["naive"])
    # what depends on no input was computed at export
    assert TINY_WORK.macs < found.macs <= subject.macs_eager
    more = {line.partition(":")[0] for line in more_than(found, TINY_WORK)}
    assert "macs" in more and len(more) > 3, more


@pytest.mark.slow
def test_work_of_the_built_in_checkpoint(bundle: Path) -> None:
    """vit_t at 256 px in FP16, whose weights have half the bytes."""
    found = counted(bundle / GRAPHS[0])
    assert more_than(found, VIT_T_WORK) == []
    assert found.macs == VIT_T_WORK.macs == Manifest.read(bundle).merge["macs_after"]
    assert found.macs / 1e9 == pytest.approx(1.154, abs=1e-3)  # of docs/benchmarks.md
