"""Bundles made by hand in milliseconds: graphs of a few nodes under an honest manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from save_deploy.bundle import FileRecord, Manifest, audio_spec, model_spec, record_files
from tests.test_manifest import manifest

SIDE = 64


def strange_bundle(folder: Path, **options: Any) -> Path:
    """A bundle whose mask_logits are all one number: see `model_graph` for the options."""
    folder.mkdir()
    onnx.save(model_graph(**options), folder / "model.onnx")
    onnx.save(audio_graph(), folder / "audio.onnx")
    weights = options.get("weights")
    if weights is not None:
        (folder / weights).write_bytes(np.float32(7.25).tobytes())
    return honest(folder, unlisted=options.get("unlisted", ()))


def honest(folder: Path, *, unlisted: Sequence[str] = ()) -> Path:
    """Write the manifest of the files that are there, and of golden samples that nobody reads."""
    good, golden = manifest(), folder / "golden"
    golden.mkdir(exist_ok=True)
    for name in ("image", "waveform", "audio_embedding", "mask_logits"):
        (golden / f"{name}.npy").write_bytes(b"not read")
    files = {n: r for n, r in record_files(folder).items() if n not in unlisted}
    spec = model_spec(good.config)
    replace(good, model=spec, audio=audio_spec(), files=files, conformance={},
            engines=(), batches=()).write(folder)  # fmt: skip
    return folder


def of_links(folder: Path) -> Path:
    """Every file becomes a link to ../blobs/HASH."""
    blobs = folder.with_name("blobs")
    for i, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blobs.mkdir(exist_ok=True)
        blob = blobs / f"{i:064x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    return folder


def rehash(folder: Path, name: str) -> None:
    found = Manifest.read(folder)
    records = record_files(folder)
    replace(found, files={**found.files, name: records[name]}).write(folder)


def model_graph(
    side: int = SIDE, dims: Sequence[Any] = (1, 1, SIDE, SIDE), weights: str | None = None,
    dtype: int = TensorProto.FLOAT, extra: str = "", unlisted: Sequence[str] = (),
) -> onnx.ModelProto:  # fmt: skip
    """Logits of side x side at run time, declared as `dims` of `dtype`: the file `weights` holds their
    value (else 1). extra: one more output."""
    value = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if weights is not None:
        value = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
        for key, text in (("location", weights), ("offset", "0"), ("length", "4")):
            value.external_data.add(key=key, value=text)
    shape = helper.make_tensor("base", TensorProto.INT64, [4], [1, 1, side, side])
    node = helper.make_node
    nodes = [
        # a shape that is known when a picture is there: all pictures of the tests are black
        node("Cast", ["image"], ["f"], to=1),
        node("ReduceMin", ["f"], ["zero"], keepdims=0),
        node("Cast", ["zero"], ["zero.i"], to=7),
        node("Constant", [], ["base"], value=shape),
        node("Add", ["base", "zero.i"], ["shape"]),
        node("ReduceSum", ["audio_embedding"], ["sum"], keepdims=0),
        node("Mul", ["sum", "zero"], ["nothing"]),
        node("Add", ["nothing", "w"], ["value"]),
        node("Cast", ["value"], ["typed"], to=dtype),
        node("Expand", ["typed", "shape"], ["mask_logits"]),
    ]
    outputs = [helper.make_tensor_value_info("mask_logits", dtype, list(dims))]
    if extra:
        nodes.append(node("Identity", ["zero"], [extra]))
        outputs.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, []))
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3]),
        helper.make_tensor_value_info("audio_embedding", TensorProto.FLOAT, [1, 128]),
    ]
    return _model(helper.make_graph(nodes, "model", inputs, outputs, [value]))


def audio_graph() -> onnx.ModelProto:
    """128 samples of the second are its embedding."""
    node = helper.make_node
    ends = [
        helper.make_tensor(n, TensorProto.INT64, [1], [v])
        for n, v in (("a", 0), ("b", 128), ("c", 1))
    ]
    return _model(
        helper.make_graph(
            [node("Slice", ["waveform", "a", "b", "c"], ["audio_embedding"])],
            "audio",
            [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [1, 16_000])],
            [helper.make_tensor_value_info("audio_embedding", TensorProto.FLOAT, [1, 128])],
            ends,
        )
    )


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def record_of(path: Path) -> FileRecord:
    return record_files(path.parent)[path.name]
