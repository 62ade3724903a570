"""save-export --int8 and save-calibrate from end to end on the built-in checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from save_deploy.calibration.table import CalibrationTable
from save_deploy.checkpoints import save_checkpoint
from save_deploy.errors import BundleError, DataError, ParityError, SaveDeployError
from save_deploy.export.options import CalibrationOptions, ExportOptions, SearchOptions
from save_deploy.export.quantize.plan import reused_units
from save_deploy.export.quantize.stage import calibrate_checkpoint
from save_deploy.export.run import export_bundle
from save_deploy.manifest import Manifest, sha256_of
from save_deploy.metrics.parity import ParityBudget, parity
from save_deploy.runtime.session import open_session
from save_deploy.specs import model_spec
from tests.calibration.samples import write_s4
from tests.conftest import make_tiny
from tests.export.test_run import CLI, leftovers, run

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"res": 224, "n_golden": 2, "rounds": 3}
PAIRS = CalibrationOptions(pairs=32)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "b"
    result = export_bundle(ExportOptions(**SMALL, precision="int8", calibration=PAIRS, out=out))
    assert any("54 of 54 products ran 8-bit kernels" in line for line in result.lines)
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a small random checkpoint with a table; its masks say nothing, so any are allowed."""
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder / "tiny.safetensors", make_tiny(res=224))
    measured = calibrate_checkpoint(
        folder / "tiny.safetensors", None, 224, PAIRS, folder / "calibration.json"
    )
    assert measured.data["pairs"] == 32
    return {
        **SMALL,
        "checkpoint": folder / "tiny.safetensors",
        "calibration": CalibrationOptions(table=folder / "calibration.json"),
        "min_agreement": 0.0,
    }


def predict(path: Path, folder: Path) -> np.ndarray:
    """Logits of a graph on the golden samples."""
    manifest = Manifest.read(folder)
    image = np.load(folder / "golden" / "image.npy")
    embedding = np.load(folder / "golden" / "audio_embedding.npy")
    with open_session("onnxruntime", path, model_spec(manifest.config)) as session:
        rows = [
            session.infer({"image": image[i : i + 1], "audio_embedding": embedding[i : i + 1]})
            for i in range(len(image))
        ]
    return np.concatenate([r["mask_logits"][:, 0] for r in rows])


def test_what_the_bundle_says(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    said = manifest.precision["quantization"]
    assert manifest.precision["precision"] == "int8" and said["float_units"] == []
    table = CalibrationTable.read(bundle / "calibration.json")
    assert said["calibration"]["sha256"] == table.sha256
    assert len(said["products"]) == 6 * manifest.config.depth == len(table.tensors)
    assert all(k == {"asked": 54, "int8": 54} for k in said["kernels"].values())
    report = json.loads((bundle / "report.json").read_text())
    assert len(report["block_sqnr_db"]) == manifest.config.depth
    assert min(report["block_sqnr_db"]) > 25
    assert {r["precision"] for r in report["rows"]} == {"fp32", "fp16", "int8"}
    assert report["margin"]["pixels"] == 2 * 224 * 224
    text = (bundle / "report.md").read_text()
    for heading in ("Verdict", "Threshold margin", "Signal to noise per block"):
        assert heading in text
    assert (bundle / "worst_1.png").is_file() and not list(bundle.glob("fp*.onnx"))


def test_a_scale_ten_times_too_large_fails(bundle: Path, tmp_path: Path) -> None:
    """The parity check of the bundle passes, and fails when one weight's scale is wrong."""
    expected = np.load(bundle / "golden" / "mask_logits.npy")
    budget = ParityBudget(**Manifest.read(bundle).golden["budget"])
    assert budget.min_agreement == 0.97
    assert parity(expected, predict(bundle / "model.onnx", bundle)).within(budget)
    model = onnx.load(bundle / "model.onnx")
    node = next(n for n in model.graph.node if n.name == "blocks.2.mlp.lin2/matmul")
    made_by = {o: n for n in model.graph.node for o in n.output}
    scale = made_by[node.input[1]].input[1]
    for tensor in model.graph.initializer:
        if tensor.name == scale:
            wrong = (numpy_helper.to_array(tensor) * 10).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wrong, scale))
    onnx.save(model, tmp_path / "wrong.onnx")
    found = parity(expected, predict(tmp_path / "wrong.onnx", bundle))
    assert not found.within(budget)
    with pytest.raises(ParityError):
        found.require(budget, what="over", hint="")


def test_a_choice_is_repeated_from_table_or_bundle(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A budget of nothing: M_J may not fall at all, so what harms stays in float. The choice is
    written down, and the same bytes come of it again."""
    searched = ExportOptions(
        **tiny,
        precision="int8",
        out=tmp_path / "s",
        search=SearchOptions(max_drop=0.0, clips=4),
    )
    result = export_bundle(searched)
    manifest = Manifest.read(tmp_path / "s")
    said = manifest.precision["quantization"]
    assert said["chosen_by"] == "search" and said["search"]["max_drop"] == 0.0
    lost = said["search"]["eager"]["m_j"] - said["search"]["chosen"]["m_j"]
    assert lost <= 0 and "within the budget of 0" in result.lines[-1]
    assert not [p for p in said["products"] if p.rpartition(".")[0] in said["float_units"]]
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert len(report["search"]["sensitivity"]) == 3 * manifest.config.depth
    assert "Precision search" in (tmp_path / "s" / "report.md").read_text()

    reused = {k: v for k, v in tiny.items() if k != "calibration"}
    export_bundle(
        ExportOptions(
            **reused,
            precision="int8",
            out=tmp_path / "again",
            search=SearchOptions(reuse=tmp_path / "s"),
        )
    )
    assert sha256_of(tmp_path / "again" / "model.onnx") == sha256_of(tmp_path / "s" / "model.onnx")
    assert Manifest.read(tmp_path / "again").precision["quantization"]["chosen_by"] == "s"
    path = tmp_path / "s" / "manifest.json"
    values = json.loads(path.read_text())
    values["precision"]["quantization"]["float_units"] = ["blocks.99.mlp"]
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"another model(.|\n)*blocks\.99\.mlp"):
        reused_units(tmp_path / "s", ())


def test_int8_with_fp16(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Float parts typed FP16, the same integers, half the float weights."""
    for name in ("int8", "int8_fp16"):
        export_bundle(ExportOptions(**tiny, precision=name, out=tmp_path / name))
    of = lambda path: {
        w.name: numpy_helper.to_array(w)
        for w in onnx.load(path / "model.onnx").graph.initializer
        if w.data_type == onnx.TensorProto.INT8 and w.dims
    }
    full, half = of(tmp_path / "int8"), of(tmp_path / "int8_fp16")
    assert full.keys() == half.keys() and all((full[k] == half[k]).all() for k in full)
    size = lambda path: (path / "model.onnx").stat().st_size
    assert size(tmp_path / "int8_fp16") < 0.7 * size(tmp_path / "int8")
    assert Manifest.read(tmp_path / "int8_fp16").precision["floats"]["precision"] == "fp16"


def test_fp8(tiny: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    result = export_bundle(ExportOptions(**tiny, precision="fp8", out=tmp_path / "f"))
    assert "no CPU kernels" in result.lines[0]
    kinds = {w.data_type for w in onnx.load(tmp_path / "f" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds and onnx.TensorProto.INT8 not in kinds


@pytest.mark.parametrize("change", ["res", "weights", "overlap", "units"])
def test_foreign_tables_are_refused(bundle: Path, tmp_path: Path, change: str) -> None:
    values = json.loads((bundle / "calibration.json").read_text())
    options = dict(SMALL)
    if change == "res":
        options["res"] = 256
    if change == "weights":
        values["model"]["sha256"] = "0" * 64
    if change == "overlap":
        from save_deploy.calibration.pairs import collect_pairs
        from save_deploy.data.open import open_dataset

        golden = collect_pairs(open_dataset("scenes", split="test"), 2, res=224)
        values["data"]["pair_sha256"][0] = golden.pair_sha256[0]
    if change == "units":
        del values["tensors"]["blocks.3.mlp.lin1"]
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises(DataError) as caught:
        export_bundle(
            ExportOptions(
                **options,
                precision="int8",
                out=tmp_path / "b",
                calibration=CalibrationOptions(table=tmp_path / "t.json"),
            )
        )
    told = {
        "res": "another model", "weights": "another model", "overlap": "overlaps the golden",
        "units": "lacks a tensor",
    }  # fmt: skip
    assert told[change] in str(caught.value) and caught.value.exit_code == 1
    assert leftovers(tmp_path) == ["t.json"]


def test_over_budget(tiny: dict[str, Any], tmp_path: Path) -> None:
    options = ExportOptions(**{**tiny, "min_agreement": 1.1}, precision="int8", out=tmp_path / "b")
    with pytest.raises(ParityError, match="--max-drop"):
        export_bundle(options)
    assert leftovers(tmp_path) == []


def test_float_bundles_have_no_choice_to_reuse(tiny: dict[str, Any], tmp_path: Path) -> None:
    floats = {k: v for k, v in tiny.items() if k != "calibration"}
    export_bundle(ExportOptions(**floats, out=tmp_path / "f"))
    reuse = SearchOptions(reuse=tmp_path / "f")
    with pytest.raises(DataError, match=r"calibration\.json cannot be read"):
        export_bundle(ExportOptions(**floats, precision="int8", out=tmp_path / "b", search=reuse))
    with pytest.raises(BundleError, match="no choice of precision"):
        reused_units(tmp_path / "f", ())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--int8", "--fp8"], "two formats"),
        (["--max-drop", "0.5"], "an option of quantization without it"),
        (["--calib-data", "scenes"], "an option of quantization without it"),
        (["--int8", "--max-drop", "-1"], "--max-drop out of range"),
        (["--int8", "--max-drop", "1", "--precision-from", "b"], "two choices of precision"),
        (["--int8", "--calib-pairs", "8"], "too few pairs"),
        (["--int8", "--calib-data", "random"], "random data is refused"),
        (["--int8", "--calib-split", "test"], "test split is refused"),
        (["--int8", "--calib-method", "magic"], "unknown calibration method"),
        (["--int8", "--calibration-table", "none.json"], "cannot be read"),
        (["--int8", "--calib-data", "nowhere"], "no dataset in this folder"),
    ],
)
def test_bad_requests(tmp_path: Path, args: list[str], message: str) -> None:
    done = run("export", "--golden", "2", *args, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert leftovers(tmp_path) == []


def test_unlabelled_and_broken_folders(tmp_path: Path) -> None:
    """A folder of the released form works; with silent sound it is refused."""
    write_s4(tmp_path / "good", {"dog": 20, "cat": 20})
    done = run("calibrate", "--res", "224", "--calib-data", "good", "--calib-pairs", "32", "-o",
               "t.json", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not stratified by number of sources" in done.stdout
    assert CalibrationTable.read(tmp_path / "t.json").data["pairs"] == 32
    again = run("calibrate", "-o", "t.json", cwd=tmp_path)
    assert again.returncode == 1 and "output exists" in again.stderr


def test_calibrate_interrupted_and_resumed(tmp_path: Path) -> None:
    args = ["calibrate", "--res", "224", "--calib-pairs", "160", "-o", "t.json"]
    env = {**os.environ, "SAVE_DEPLOY_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [*CLI, *args], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 180
    states = tmp_path / "cache" / "calibration"
    while not list(states.glob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, "no state was written before the end"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on where this one stopped" in stderr
    assert not (tmp_path / "t.json").exists() and list(states.glob("*.npz"))
    done = subprocess.run([*CLI, *args], cwd=tmp_path, capture_output=True, text=True, env=env,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert CalibrationTable.read(tmp_path / "t.json").data["pairs"] == 160
    assert not list(states.glob("*.npz"))


def test_unknown_precision() -> None:
    with pytest.raises(SaveDeployError, match="unknown precision"):
        ExportOptions(precision="int4")
