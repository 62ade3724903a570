"""One 8-bit file on all runtimes: ONNX's checker, ONNX Runtime, OpenVINO and TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from save_deploy.bundle import Arrays, model_spec
from save_deploy.calibration.observe import Observer, observe
from save_deploy.export.engine.build import build_engine
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.fp16 import Fp16Plan, drop_unused_weights, to_fp16
from save_deploy.export.graph import save_graph
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import forms_for
from save_deploy.export.quantize import find_sites, insert_qdq
from save_deploy.export.trace import graph_from_module
from save_deploy.metrics.margin import sqnr_db
from save_deploy.runtime.kernels import executed_kernels
from save_deploy.runtime.session import OrtSession
from tests.conftest import TINY, make_tiny

PER_BLOCK = {"tensorrt": 6, "portable": 9}  # products; joined forms have fewer


@pytest.fixture(scope="module")
def feeds() -> Arrays:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    return {"image": image, "audio_embedding": rng.random((1, 128), dtype=np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("floats", ["fp32", pytest.param("fp16", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("target", PER_BLOCK)
def test_one_file(target: str, floats: str, feeds: Arrays, tmp_path: Path) -> None:
    """The very same bytes pass everywhere, with an INT8 kernel for every MatMul that is asked.

    FP16 float parts too: products are typed FP32 between Q/DQ and a cast, so no runtime falls back.
    """
    pytest.importorskip("openvino")
    model = make_tiny()
    deploy = DeployModel(model, forms_for(target).quantizable()).eval().requires_grad_(False)
    products = find_sites(deploy)
    example = tuple(torch.from_numpy(feeds[s.name]) for s in model_spec(model.config).inputs)
    observer = Observer(deploy, [p.name for p in products])
    observe(deploy, observer, [example])
    graph = graph_from_module(deploy, example, inputs=list(feeds), output="mask_logits")
    ranges = {name: h.amax("minmax") for name, h in observer.histograms.items()}
    asked = insert_qdq(graph, products, ranges)
    if floats == "fp16":
        to_fp16(graph, Fp16Plan("fp16", ("Softmax",), (), 1, {}))
        drop_unused_weights(graph)
    path = tmp_path / "model.onnx"
    save_graph(graph, path)
    onnx.checker.check_model(path, full_check=True)
    assert len(asked) == PER_BLOCK[target] * TINY["depth"]

    for backend in ("onnxruntime", "openvino"):
        check = executed_kernels(backend, path, asked, feeds)
        assert check.int8 == check.asked == len(asked), check.not_int8
    with OrtSession(path, model_spec(model.config)) as session:
        got = session.infer(feeds)["mask_logits"]
    expected = model.forward_embedding(*example).numpy()
    assert sqnr_db(expected - expected.mean(), got - expected.mean()) > 40

    pytest.importorskip("tensorrt_rtx")
    options = BuildOptions(library="rtx", targets=("SM86",))
    receipt = build_engine(path, tmp_path / "model.engine", options).receipt
    assert receipt.dequantised == () and receipt.warnings == ()
    assert receipt.quantised == receipt.quantised_asked == len(asked)
