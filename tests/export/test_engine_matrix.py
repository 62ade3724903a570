"""Engines of the built-in model in every resolution and precision: what each must be built of.

Counts and memory are those of TensorRT-RTX 1.7 (docs/tensorrt.md), which builds without a GPU.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from save_deploy.bundle import model_spec
from save_deploy.calibration.pairs import collect_pairs
from save_deploy.checkpoints import load_model
from save_deploy.data.open import open_dataset
from save_deploy.errors import ExportError
from save_deploy.export.engine.build import build_engine
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.receipt import Allow, Receipt, failures
from save_deploy.export.fp16 import Fp16Plan, drop_unused_weights, plan_fp16, to_fp16
from save_deploy.export.graph import save_graph
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import Forms, forms_for
from save_deploy.export.quantize import find_sites, insert_qdq
from save_deploy.export.trace import graph_from_module
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.session import as_batch
from tests.benchmarks import tensorrt_table
from tests.conftest import make_tiny

pytest.importorskip("tensorrt_rtx", reason='no tensorrt_rtx: pip install "save-deploy[rtx]"')
ATTENTIONS = 6 + 7  # of the encoder's blocks and of the decoder
MORE = 1.1  # of what was measured, for another version of the library
HARMLESS: tuple[str, ...] = ()  # patterns of warnings that docs/tensorrt.md lists; none is met yet


@dataclass(frozen=True)
class Measured:
    """Of a build that was looked at: kernels, and megabytes of activations."""

    kernels: int
    activation_mb: float


MATRIX = {
    (224, "fp32"): Measured(200, 9.4),
    (224, "fp16"): Measured(168, 8.8),
    (256, "fp32"): Measured(204, 13.5),
    (256, "fp16"): Measured(172, 10.4),
    (1024, "fp32"): Measured(208, 299.7),
    (1024, "fp16"): Measured(174, 26.8),
    (256, "int8"): Measured(186, 10.3),
    (256, "bf16"): Measured(179, 18.2),
}
USUAL = (256, "fp16")  # the rest takes minutes
RUNS = [
    pytest.param(*run, marks=pytest.mark.thorough if run == USUAL else pytest.mark.long)
    for run in MATRIX
]
Graphs = Callable[[int, str], Path]


@pytest.fixture(scope="module")
def plan() -> Fp16Plan:
    """FP16 of the built-in model as measured at 256 px: names of modules are those of every size."""
    model = load_model(None, res=256)
    pairs = collect_pairs(open_dataset("scenes", split="val"), 2, res=256)
    pipeline = eager_pipeline(model)
    inputs = [
        (torch.from_numpy(as_batch(image)), torch.from_numpy(pipeline.embed(waveform)))
        for image, waveform in zip(pairs.image, pairs.waveform, strict=True)
    ]
    return plan_fp16(DeployModel(model, forms_for("tensorrt")).eval(), inputs)


@pytest.fixture(scope="module")
def graphs(plan: Fp16Plan, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """graphs(res, precision): traced once per size and form in FP32, then typed."""
    folder = tmp_path_factory.mktemp("graphs")

    @functools.cache
    def trace(res: int, forms: Forms) -> tuple[Path, Any]:
        deploy = DeployModel(load_model(None, res=res), forms).eval().requires_grad_(False)
        spec, path = model_spec(deploy.config), folder / f"{res}-{forms.adapter}.onnx"
        example = tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in spec.inputs)
        names = [s.name for s in spec.inputs]
        save_graph(graph_from_module(deploy, example, inputs=names, output="mask_logits"), path)
        return path, find_sites(deploy)

    def make(res: int, precision: str) -> Path:
        forms = forms_for("tensorrt", res=res)
        if precision in ("int8", "bf16"):
            forms = forms.quantizable()
        source, products = trace(res, forms)
        if precision == "fp32":
            return source
        graph, path = ir.load(source), folder / f"{res}-{precision}.onnx"
        if precision == "int8":
            insert_qdq(graph, products, {p.name: 4.0 for p in products})
        to_fp16(graph, plan)
        drop_unused_weights(graph)
        save_graph(graph, path)
        if precision == "bf16":
            tensorrt_table._to_bf16(path)
        return path

    return make


def built(path: Path) -> Receipt:
    options = BuildOptions(library="rtx", targets=("SM86",))
    result = build_engine(path, path.with_suffix(".engine"), options)
    result.engine.unlink()
    return result.receipt


@pytest.mark.slow
@pytest.mark.parametrize(("res", "precision"), RUNS)
def test_engine(res: int, precision: str, graphs: Graphs) -> None:
    """Every attention is one kernel (FP32: TensorRT fuses none but that of a single query), every
    product has the asked type, activations fit, nothing is warned of."""
    receipt, measured = built(graphs(res, precision)), MATRIX[res, precision]
    assert receipt.attentions == ATTENTIONS
    assert receipt.fp32_attentions == (ATTENTIONS if precision == "fp32" else 0)
    assert receipt.fused == (1 if precision == "fp32" else ATTENTIONS)
    assert receipt.unfused == receipt.unfused_softmax == receipt.fp32_built == ()
    assert receipt.dequantised == receipt.unproven == ()
    assert receipt.quantised == receipt.quantised_asked == (36 if precision == "int8" else 0)
    assert failures(receipt, Allow()) == []
    assert [w for w in receipt.warnings if not any(re.search(p, w) for p in HARMLESS)] == []
    assert receipt.n_kernels <= measured.kernels + 4
    assert receipt.activation_bytes is not None
    assert receipt.activation_bytes <= MORE * measured.activation_mb * 1e6


@pytest.mark.thorough
def test_bf16_of_the_eager_model_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transposed convolutions; the merged model has products in their place."""
    monkeypatch.setattr(tensorrt_table, "_model", lambda preset, res: make_tiny(res=res))
    threads = torch.get_num_threads()
    try:
        tensorrt_table.export("tiny", 64, "naive", "bf16", tmp_path / "model.onnx")
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(ExportError, match="no BF16 transposed convolution") as caught:
        built(tmp_path / "model.onnx")
    assert "deconv" in caught.value.got and "FP16" in caught.value.hint


@pytest.mark.long
def test_vit_b() -> None:
    """Random weights, which kernels do not depend on; in processes that give their memory back."""
    found = tensorrt_table.measure("vit_b", 256, "merged", "fp16")
    assert found.error == "" and found.warnings == ()
    assert found.fused == found.attentions == 12 + 7
    assert found.kernels <= 274 + 4 and found.activation_mb <= MORE * 18.6
