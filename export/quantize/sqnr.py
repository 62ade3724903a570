"""Signal-to-noise ratio of every encoder block's output: quantized graph against float graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from save_deploy.bundle import Arrays
from save_deploy.export.trace import KEPT_METADATA
from save_deploy.libraries import import_onnxruntime
from save_deploy.metrics.margin import sqnr_db


def block_sqnr(
    reference: Path, quantized: Path, inputs: list[Arrays], n_blocks: int, *, threads: int
) -> list[float]:
    """Return dB per block over all inputs.

    Both graphs are single files with nodes named after the modules.
    """
    expected = _block_outputs(reference, inputs, n_blocks, threads)
    got = _block_outputs(quantized, inputs, n_blocks, threads)
    return [sqnr_db(e, g) for e, g in zip(expected, got, strict=True)]


def _block_outputs(
    path: Path, inputs: list[Arrays], n_blocks: int, threads: int
) -> list[NDArray[np.float32]]:
    """Return the output of every block: n_blocks x (N*B,s,s,C)."""
    ort = import_onnxruntime()
    model = onnx.load(path)
    names = [_output_of(model, f"blocks.{i}") for i in range(n_blocks)]
    known = {o.name for o in model.graph.output}
    for name in names:
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [session.run(names, one) for one in inputs]
    return [np.concatenate([run[i] for run in found]).astype(np.float32) for i in range(n_blocks)]


def _output_of(model: Any, module: str) -> str:
    """Return the output name of the last node that belongs to the module itself."""
    own = [
        node
        for node in model.graph.node
        if any(p.key == KEPT_METADATA and p.value == module for p in node.metadata_props)
    ]
    return str(own[-1].output[0])
