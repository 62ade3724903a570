"""Graphs with further batches: one file of weights, and a proof of every graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from save_deploy.bundle import Manifest
from save_deploy.errors import ParityError, SaveDeployError
from save_deploy.export import export as export_module
from save_deploy.export.batches import write_batches
from save_deploy.export.export import export
from save_deploy.export.graph import save_graph
from save_deploy.export.options import CalibrationOptions, ExportOptions, parse_batches
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.pipeline import load
from tests.command import run


def size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def check_shared(bundle: Path, batches: tuple[int, ...]) -> None:
    """Weights are in the one file, each graph holds nothing but its nodes."""
    names = ["model.onnx", *(f"model_x{batch}.onnx" for batch in batches)]
    assert sorted(p.name for p in bundle.glob("model*.onnx*")) == sorted(
        [*names, "model.onnx.data"]
    )
    weights = size(bundle, "model.onnx.data")
    for name in names:
        graph = onnx.load(bundle / name, load_external_data=False).graph
        inside = [t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL]
        outside = [t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]
        for tensor in outside:
            given = {entry.key: entry.value for entry in tensor.external_data}
            assert given["location"] == "model.onnx.data"
            assert int(given["offset"]) + int(given["length"]) <= weights
        assert sum(len(t.raw_data) for t in inside) < 0.02 * weights
        held = sum(int(e.value) for t in outside for e in t.external_data if e.key == "length")
        assert held > 0.98 * weights
    assert Manifest.read(bundle).batches == batches


def test_the_bundle_grows_by_the_graphs_alone(bundle_fp32: Path, bundle_batches: Path) -> None:
    check_shared(bundle_batches, (2, 4))
    one, three = size(bundle_fp32, "model*"), size(bundle_batches, "model*")
    assert three < one + 3 * size(bundle_batches, "model_x4.onnx") < 1.5 * one
    manifest = json.loads((bundle_batches / "manifest.json").read_text())
    assert manifest["graphs"]["model"]["batches"] == [
        {"batch": 2, "file": "model_x2.onnx"},
        {"batch": 4, "file": "model_x4.onnx"},
    ]
    report = json.loads((bundle_batches / "report.json").read_text())
    proven = {(row["batch"], row["backend"]) for row in report["batches"]}
    own = {row["backend"] for row in report["rows"]} - {"eager"}
    assert proven == {(batch, backend) for batch in (2, 4) for backend in own}
    assert all(row["parity"]["max_abs_err"] < 1e-3 for row in report["batches"])
    assert (
        "model_x4.onnx on onnxruntime: 4 frames a call"
        in (bundle_batches / "report.md").read_text()
    )


def test_one_batch_is_as_before(bundle_fp32: Path) -> None:
    manifest = json.loads((bundle_fp32 / "manifest.json").read_text())
    assert set(manifest["graphs"]["model"]) == {"file", "inputs", "outputs"}
    assert "batches" not in json.loads((bundle_fp32 / "report.json").read_text())
    names = sorted(p.name for p in bundle_fp32.glob("model*"))
    assert names == ["model.onnx", "model.onnx.data"]


def mixed(bundle: Path) -> None:
    """The graph of four frames gives the third one the mask of the second."""
    path = bundle / "model_x4.onnx"
    model = onnx.load(path, load_external_data=False)
    last = next(n for n in model.graph.node if "mask_logits" in n.output)
    last.output[list(last.output).index("mask_logits")] = "in order"
    model.graph.initializer.append(
        helper.make_tensor("places", TensorProto.INT64, [4], [0, 1, 1, 3])
    )
    model.graph.node.append(
        helper.make_node("Gather", ["in order", "places"], ["mask_logits"], axis=0)
    )
    onnx.save(model, path)


@pytest.mark.thorough
def test_a_graph_that_mixes_frames_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(*args: Any, **options: Any) -> Any:
        made = write_batches(*args, **options)
        mixed(args[1])
        return made

    monkeypatch.setattr(export_module, "write_batches", written)
    options = ExportOptions(
        checkpoint=tiny_checkpoint, res=224, n_golden=2, rounds=3, threads=1, out=tmp_path / "b",
        more_batches=(4,),
    )  # fmt: skip
    with pytest.raises(ParityError, match="4 frames a call, fp32 is over the parity budget"):
        export(options)
    assert not (tmp_path / "b").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["fp16", "int8", "int8_fp16"])
def test_other_precisions(tiny_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    options = ExportOptions(
        checkpoint=tiny_checkpoint, res=224, n_golden=3, rounds=3, threads=1, out=tmp_path / "b",
        precision=precision, more_batches=(4,), min_agreement=0.0, allow_one_sided=True,
        calibration=CalibrationOptions(pairs=32),
    )  # fmt: skip
    export(options)
    check_shared(tmp_path / "b", (4,))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    heard = rng.random((4, 128), dtype=np.float32)
    with load(tmp_path / "b", backend="onnxruntime", threads=1) as pipeline:
        alone = np.concatenate(
            [pipeline.run(images[i : i + 1], heard[i : i + 1]) for i in range(4)]
        )
        found = pipeline.run(images, heard)
    assert np.abs(found - alone).max() < (1e-3 if precision == "fp16" else 0.05 * np.ptp(alone))


def test_weights_that_are_not_in_the_file(tmp_path: Path) -> None:
    """A weight of another file that is not in the shared one is copied into the graph."""

    def graph(values: dict[str, np.ndarray]) -> ir.Model:
        nodes = [helper.make_node("Add", ["x", name], [f"y {name}"]) for name in values]
        ports = [helper.make_tensor_value_info(f"y {n}", 1, [100]) for n in values]
        weights = [onnx.numpy_helper.from_array(v, n) for n, v in values.items()]
        x = helper.make_tensor_value_info("x", 1, [100])
        return ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", [x], ports, weights)))

    a, b = np.arange(100, dtype=np.float32), -np.arange(100, dtype=np.float32)
    save_graph(graph({"a": a}), tmp_path / "alone.onnx")
    assert not (tmp_path / "alone.onnx.data").exists()  # few weights are in the graph
    save_graph(graph({"a": a}), tmp_path / "first.onnx", shared=tmp_path / "first.onnx")
    ir.save(graph({"other": a, "b": b}), tmp_path / "old.onnx", external_data="old.onnx.data")
    second = tmp_path / "second.onnx"
    save_graph(ir.load(tmp_path / "old.onnx"), second, shared=tmp_path / "first.onnx")
    (tmp_path / "old.onnx.data").unlink()
    assert weight_files(second, ["first.onnx.data"]) == ("first.onnx.data",)
    found = {t.name: t for t in onnx.load(second).graph.initializer}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found["other"]), a)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found["b"]), b)
    assert (tmp_path / "first.onnx.data").stat().st_size == 400


@pytest.mark.parametrize(
    "text", ["", "0", "65", "1,", "1,1", "a", "1;8", ",".join(map(str, range(1, 10)))]
)
def test_wrong_batches(tmp_path: Path, text: str) -> None:
    with pytest.raises(SaveDeployError, match="wrong --batch"):
        parse_batches(text)
    done = run("export", "--batch", text, "--dry-run", cwd=tmp_path)
    assert done.returncode == 1 and "wrong --batch" in done.stderr


def test_options_in_python() -> None:
    assert ExportOptions().batches == (1,)
    assert ExportOptions(batch=5).folder.name == "save_vit_t_256_fp32_x5"
    assert ExportOptions(more_batches=(8, 32)).folder.name == "save_vit_t_256_fp32_x1_8_32"
    assert parse_batches("1,8,32") == (1, 8, 32)
    with pytest.raises(SaveDeployError, match="wrong --batch"):
        ExportOptions(more_batches=(1,))
