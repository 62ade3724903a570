"""save-export --int8 and save-calibrate from end to end on the built-in checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from save_deploy.bundle import Manifest, model_spec, sha256_of
from save_deploy.calibration.table import CalibrationTable
from save_deploy.checkpoints import save_checkpoint
from save_deploy.errors import BundleError, ParityError
from save_deploy.export import graph, memory
from save_deploy.export.export import export
from save_deploy.export.options import CalibrationOptions, ExportOptions, SearchOptions
from save_deploy.export.quantize.calibrate import calibrate_checkpoint
from save_deploy.export.quantize.plan import ReusedChoice
from save_deploy.export.quantize.trial import Validation
from save_deploy.metrics.budget import ParityBudget
from save_deploy.metrics.parity import parity
from save_deploy.runtime.compare.entries import Entry
from save_deploy.runtime.session import available_backends, open_session
from tests.conftest import make_tiny
from tests.export.test_run import CLI, leftovers

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"res": 224, "n_golden": 2, "rounds": 3}
PAIRS = CalibrationOptions(pairs=32)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bundle(bundle_int8: Path) -> Path:
    return bundle_int8


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
        "allow_one_sided": True,
    }


@pytest.fixture(scope="module")
def tiny_int8(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle."""
    out = tmp_path_factory.mktemp("tiny") / "int8"
    export(ExportOptions(**tiny, precision="int8", out=out))
    return out


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
    assert report["margin"]["backend"] == "onnxruntime"
    text = (bundle / "report.md").read_text()
    for heading in (
        "Verdict",
        "Threshold margin (masks of onnxruntime)",
        "Signal to noise per block",
    ):
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


@pytest.mark.thorough
def test_a_choice_is_repeated_from_table_or_bundle(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A budget of nothing: M_J may not fall at all, so what harms stays in float. The choice is
    written down, and the same bytes come of it again."""
    searched = ExportOptions(
        **tiny,
        precision="int8",
        out=tmp_path / "s",
        search=SearchOptions(max_drop=0.0, clips=4, cost="work"),
    )
    result = export(searched)
    manifest = Manifest.read(tmp_path / "s")
    said = manifest.precision["quantization"]
    assert said["chosen_by"] == "search" and said["search"]["max_drop"] == 0.0
    lost = said["search"]["eager"]["m_j"] - said["search"]["chosen"]["m_j"]
    assert lost <= 0 and "within the budget of 0" in result.lines[-1]
    assert not [p for p in said["products"] if p.rpartition(".")[0] in said["float_units"]]
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert len(report["search"]["sensitivity"]) == 3 * manifest.config.depth
    assert report["search"]["cost_unit"] == "GMAC"
    assert report["search"]["cost"]["float"] == 2 * report["search"]["cost"]["quantized"] > 0
    assert "Precision search" in (tmp_path / "s" / "report.md").read_text()

    reused = {k: v for k, v in tiny.items() if k != "calibration"}
    export(
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
        ReusedChoice.read(tmp_path / "s").require_units(())


@pytest.mark.thorough
def test_a_bundle_is_repeated_by_its_own_method(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Not by the default of the table; and only with the table it was made with."""
    table = tiny["calibration"].table
    made = CalibrationOptions(table=table, method="percentile")
    export(ExportOptions(**{**tiny, "calibration": made}, precision="int8", out=tmp_path / "a"))
    options = {k: v for k, v in tiny.items() if k != "calibration"}
    again = ExportOptions(
        **options, precision="int8", out=tmp_path / "b", search=SearchOptions(reuse=tmp_path / "a")
    )
    export(again)
    said = Manifest.read(tmp_path / "b").precision["quantization"]["calibration"]
    assert said["method"] == "percentile" and CalibrationTable.read(table).method == "minmax"
    assert sha256_of(tmp_path / "a" / "model.onnx") == sha256_of(tmp_path / "b" / "model.onnx")
    path = tmp_path / "a" / "calibration.json"
    values = json.loads(path.read_text())
    values["tensors"]["blocks.1.mlp.lin1"]["amax"]["percentile"] *= 2
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="not the table the bundle was made with"):
        export(replace(again, out=tmp_path / "c"))
    assert not (tmp_path / "c").exists()


@pytest.mark.thorough
def test_large_models_are_compared_one_by_one(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict as for small ones, with one session at a time; what was not measured is said."""
    opened: list[str] = []
    whole = Entry.open

    def one_at_a_time(entry: Entry) -> Any:
        assert not opened, f"{entry} beside {opened}"
        pipeline, close = whole(entry), None
        opened.append(entry.precision)
        close = pipeline.close
        monkeypatch.setattr(pipeline, "close", lambda: (opened.pop(), close()))
        return pipeline

    monkeypatch.setattr(Entry, "open", one_at_a_time)
    monkeypatch.setattr(memory, "is_large", lambda *_: True)
    monkeypatch.setattr(graph, "LARGE_BYTES", 1)
    result = export(ExportOptions(**tiny, precision="int8", out=tmp_path / "b"))
    rows = [(row.backend, row.precision) for row in result.rows]
    backends = sorted(available_backends(), reverse=True)
    assert rows == [("eager", "fp32")] + [(b, p) for p in ("fp32", "int8") for b in backends]
    for backend in backends:
        assert any(f"x fp32 on {backend}" in line for line in result.lines)
    missing = next(line for line in result.lines if line.startswith("not measured"))
    assert "the FP16 graph, signal to noise per block" in missing and "too large" in missing
    assert not list((tmp_path / "b").glob("fp32*"))


@pytest.mark.thorough
def test_interrupted_search_goes_on_without_calibrating_again(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Ctrl-C between two choices: nothing at the target, ranges and scores are kept."""
    args = ["export", str(tiny["checkpoint"]), "--res", "224", "--golden", "2", "--rounds", "3",
            "--int8", "--calib-pairs", "32", "--max-drop", "0", "--search-clips", "4",
            "--min-agreement", "0", "--allow-one-sided-golden", "-o", "b"]  # fmt: skip
    env = {**os.environ, "SAVE_DEPLOY_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [*CLI, *args], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=env, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 180
    scores = tmp_path / "cache" / "search"
    while not list(scores.glob("*.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again to resume" in stderr
    assert leftovers(tmp_path) == ["cache"]
    kept = len(json.loads(next(scores.glob("*.json")).read_text()))
    done = subprocess.run([*CLI, *args], cwd=tmp_path, capture_output=True, text=True, env=env,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pairs 32/32 measured by an earlier run" in done.stderr
    assert len(list(scores.glob("*.json"))) == 1
    found = json.loads((tmp_path / "b" / "report.json").read_text())["search"]
    assert found["reused"] == kept > 0 and found["evaluations"] > 0


@pytest.mark.thorough
def test_a_search_over_budget_leaves_nothing(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with everything in float M_J falls by more than allowed: exit code 2."""
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))  # no scores of other tests
    score = Validation.score
    lower = lambda self, pipeline: replace(score(self, pipeline), m_j=self.eager.m_j - 0.2)
    monkeypatch.setattr(Validation, "score", lower)
    search = SearchOptions(max_drop=0.1, clips=4)
    with pytest.raises(ParityError, match="no precision choice is within") as caught:
        export(ExportOptions(**tiny, precision="int8", out=tmp_path / "b", search=search))
    assert caught.value.exit_code == 2 and leftovers(tmp_path) == ["cache"]


@pytest.mark.thorough
def test_int8_with_fp16(tiny: dict[str, Any], tiny_int8: Path, tmp_path: Path) -> None:
    """Float parts typed FP16, the same integers, half the float weights."""
    export(ExportOptions(**tiny, precision="int8_fp16", out=tmp_path / "int8_fp16"))
    of = lambda path: {
        w.name: numpy_helper.to_array(w)
        for w in onnx.load(path / "model.onnx").graph.initializer
        if w.data_type == onnx.TensorProto.INT8 and w.dims
    }
    full, half = of(tiny_int8), of(tmp_path / "int8_fp16")
    assert full.keys() == half.keys() and all((full[k] == half[k]).all() for k in full)
    size = lambda path: sum(file.stat().st_size for file in path.glob("model.onnx*"))
    assert size(tmp_path / "int8_fp16") < 0.7 * size(tiny_int8)
    precision = Manifest.read(tmp_path / "int8_fp16").precision
    assert precision["floats"]["precision"] == "fp16"
    kernels = precision["quantization"]["kernels"]
    assert kernels and all(k["int8"] == k["asked"] for k in kernels.values())


@pytest.mark.thorough
def test_fp8(tiny: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    result = export(ExportOptions(**tiny, precision="fp8", out=tmp_path / "f"))
    assert "no CPU kernels" in result.lines[0]
    kinds = {w.data_type for w in onnx.load(tmp_path / "f" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds and onnx.TensorProto.INT8 not in kinds


@pytest.mark.thorough
def test_over_budget(tiny: dict[str, Any], tmp_path: Path) -> None:
    options = ExportOptions(**{**tiny, "min_agreement": 1.1}, precision="int8", out=tmp_path / "b")
    with pytest.raises(ParityError, match="--max-drop") as caught:
        export(options)
    for told in ("lowest signal to noise: block ", " dB, block ", "x eager; 27 of 27 MatMuls"):
        assert told in str(caught.value)
    assert leftovers(tmp_path) == ["b.rejected"]


@pytest.mark.thorough
def test_float_bundles_have_no_choice_to_reuse(tiny: dict[str, Any], tmp_path: Path) -> None:
    floats = {k: v for k, v in tiny.items() if k != "calibration"}
    export(ExportOptions(**floats, out=tmp_path / "f"))
    reuse = SearchOptions(reuse=tmp_path / "f")
    with pytest.raises(BundleError, match="no precision choice"):
        export(ExportOptions(**floats, precision="int8", out=tmp_path / "b", search=reuse))


@pytest.mark.thorough
def test_calibrate_interrupted_and_resumed(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A state after every pair, so that an interrupt at any time has one to go on from."""
    args = ["calibrate", str(tiny["checkpoint"]), "--res", "224", "--calib-pairs", "160"]
    args += ["-o", "t.json"]
    code = (
        "from save_deploy.export.quantize import calibrate; calibrate.SAVE_EVERY_S = 0\n"
        "from save_deploy.cli import main; main()"
    )
    env = {**os.environ, "SAVE_DEPLOY_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 180
    states = tmp_path / "cache" / "calibration"
    while not list(states.glob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, "no state was written before the end"
    time.sleep(0.5)  # the file is there a moment before the process knows
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "run the same command again to resume" in stderr
    assert not (tmp_path / "t.json").exists() and list(states.glob("*.npz"))
    done = subprocess.run([*CLI, *args], cwd=tmp_path, capture_output=True, text=True, env=env,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "smoothing and bias correction 18/18" in done.stderr
    assert CalibrationTable.read(tmp_path / "t.json").data["pairs"] == 160
    assert not list(states.glob("*.npz"))
