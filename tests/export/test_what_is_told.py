"""What an export says beside its numbers: masks that prove nothing, what it is, why it is refused."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from save_deploy.bundle import Manifest
from save_deploy.errors import CheckpointError, DataError, ExportError, OutputError, ParityError
from save_deploy.export.export import export, require_both_sides
from save_deploy.export.golden import Golden
from save_deploy.export.inputs import check_inputs
from save_deploy.export.options import ExportOptions
from save_deploy.export.rejected import _check_ours
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime.golden import one_sided, sounding_share
from tests.command import run
from tests.conftest import tiny_file


def golden_of(logits: np.ndarray) -> Golden:
    return Golden(None, np.zeros((1, 128), np.float32), logits, LatencyResult((1.0,), 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [-1.0, 1.0])
def test_rounded_numbers_need_masks_of_both_kinds(level: float) -> None:
    """All pixels of one kind: whatever a graph does to small logits, the agreement is 1."""
    logits = np.full((2, 64, 64), level, np.float32)
    golden = golden_of(logits)
    for precision in ("fp16", "int8", "fp8"):
        options = ExportOptions(precision=precision)  # type: ignore[arg-type]
        with pytest.raises(ExportError, match=r"cannot be proven(.|\n)*--allow-one-sided-golden"):
            require_both_sides(golden, options)
        require_both_sides(golden, replace(options, allow_one_sided=True))
        logits_of_both = logits.copy()
        logits_of_both[:, :8] *= -1
        require_both_sides(golden_of(logits_of_both), options)
    require_both_sides(golden, ExportOptions())
    word = "empty" if level < 0 else "full"
    assert f"are {word}" in one_sided(sounding_share(logits))


@pytest.mark.slow
def test_a_rejected_export_leaves_its_report(tmp_path: Path) -> None:
    """Report and worst frames beside the bundle that is not there."""
    out = tmp_path / "b"
    options = ExportOptions(
        checkpoint=tiny_file(), res=224, out=out, precision="fp16", n_golden=2, rounds=3,  # type: ignore[arg-type]
        max_abs_err=1e-12, allow_one_sided=True,
    )  # fmt: skip
    with pytest.raises(ParityError, match=r"over the parity budget(.|\n)*b.rejected/report.md"):
        export(options)
    assert {path.name for path in tmp_path.iterdir()} == {"b.rejected"}
    kept = {path.name for path in (tmp_path / "b.rejected").iterdir()}
    assert kept == {"report.md", "report.json", "worst_1.png", "worst_2.png"}
    assert Image.open(tmp_path / "b.rejected" / "worst_1.png").width > 3 * 224
    _check_ours(tmp_path / "b.rejected")  # so that the next one may replace it
    (tmp_path / "b.rejected" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"mine.txt"):
        _check_ours(tmp_path / "b.rejected")


def test_a_bundle_says_what_it_is(bundle_fp32: Path) -> None:
    """Its files alone, too."""
    manifest = Manifest.read(bundle_fp32)
    assert manifest.merge["target"] == "portable"
    assert manifest.golden["sounding_share"] == pytest.approx(
        np.mean(np.load(bundle_fp32 / "golden" / "mask_logits.npy") > 0), abs=1e-6
    )
    for name in ("model.onnx", "audio.onnx"):
        model = onnx.load(bundle_fp32 / name, load_external_data=False)
        told = {p.key: p.value for p in model.metadata_props}
        assert told["checkpoint_sha256"] == manifest.source["files"][0]["sha256"]
        assert told["system"] == "save" and told["model"] == "vit_t"
        assert (model.producer_name, bool(model.producer_version)) == ("save-deploy", True)
    text = run("inspect", bundle_fp32).stdout
    assert "tiny.safetensors" in text and "portable, for CPUs" in text and "224 px" in text
    assert "agreement with eager at least 0.9999" in text and "times as fast as eager" in text
    assert (
        "golden/image.npy" not in text
        and "golden/image.npy" in run("inspect", bundle_fp32, "--files").stdout
    )


def test_a_report_that_cannot_be_read_is_left_out(bundle_fp32: Path, tmp_path: Path) -> None:
    for content in ("{", "[]", '{"rows": [{"precision": "fp32", "parity": 1, "speedup": "x"}]}'):
        copy = tmp_path / "b"
        shutil.copytree(bundle_fp32, copy, copy_function=shutil.copy)
        (copy / "report.json").write_text(content)
        manifest = Manifest.read(copy)
        files = {n: r for n, r in manifest.files.items() if n != "report.json"}
        replace(manifest, files=files).write(copy)
        done = run("inspect", copy)
        assert done.returncode == 0 and "scores" not in done.stdout, done.stderr
        shutil.rmtree(copy)


def test_inputs_are_looked_at_first(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    with pytest.raises(CheckpointError, match="checkpoint not found"):
        check_inputs(ExportOptions(checkpoint=missing))
    with pytest.raises(CheckpointError, match="SAM checkpoint not found"):
        check_inputs(ExportOptions(sam=missing))
    with pytest.raises(DataError):
        check_inputs(ExportOptions(data=str(tmp_path / "no dataset")))


def test_eval_looks_at_its_dataset_before_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "save_deploy.training.evaluate", None)  # which imports torch
    done = run("eval", "--data", tmp_path)
    assert done.returncode == 1 and "no dataset in this folder" in done.stderr
