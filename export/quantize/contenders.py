"""INT8 graphs to benchmark: ours, and what the usual tools make of the eager export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from save_deploy.bundle import Arrays, model_spec
from save_deploy.calibration.observe import Observer, observe
from save_deploy.calibration.pairs import Pairs
from save_deploy.calibration.select import MIN_PAIRS, select_pairs
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import Forms
from save_deploy.export.onnx_export import graph_from_module, save_graph
from save_deploy.export.quantize.products import find_products
from save_deploy.export.quantize.qdq import insert_qdq
from save_deploy.model.save import SaveModel
from save_deploy.runtime.eager import eager_pipeline

DATA = "scenes"  # speed does not depend on it, nor on how many
N_INPUTS = 8


def calibration_inputs(model: SaveModel) -> list[Arrays]:
    """N_INPUTS real inputs of the model graph, one frame each."""
    pairs: Pairs = select_pairs(DATA, MIN_PAIRS, res=model.config.res).pairs
    pipeline = eager_pipeline(model)
    return [
        {"image": image[None], "audio_embedding": pipeline.embed(waveform)}
        for image, waveform in zip(pairs.image[:N_INPUTS], pairs.waveform[:N_INPUTS], strict=True)
    ]


def write_int8(
    model: SaveModel, forms: Forms, inputs: list[Arrays], example: tuple[torch.Tensor, ...],
    path: Path,
) -> None:  # fmt: skip
    """The merged graph with every encoder product quantized."""
    deploy = DeployModel(model, forms.quantizable()).eval().requires_grad_(False)
    products = find_products(deploy)
    observer = Observer(deploy, [p.name for p in products])
    tensors = (
        (torch.from_numpy(a["image"]), torch.from_numpy(a["audio_embedding"])) for a in inputs
    )
    observe(deploy, observer, tensors)
    names = [s.name for s in model_spec(model.config).inputs]
    graph = graph_from_module(deploy, example, inputs=names, output="mask_logits")
    insert_qdq(graph, products, {n: h.amax("minmax") for n, h in observer.histograms.items()})
    save_graph(graph, path)


def write_naive_int8(naive: Path, inputs: list[Arrays], batch: int, path: Path) -> None:
    """ONNX Runtime's quantize_static with its defaults on the eager export, the same real inputs."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Arrays] = iter(inputs)

        def get_next(self) -> Arrays | None:
            found = next(self.left, None)
            if found is None:
                return None
            return {name: np.repeat(array, batch, axis=0) for name, array in found.items()}

    quantize_static(naive, path, Reader())
