"""save-compare: budgets as exit codes, report files, sections of a bundle."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from save_deploy.bundle import MANIFEST, FileRecord, Manifest, sha256_of
from save_deploy.errors import SaveDeployError
from save_deploy.metrics.latency import LatencyResult
from save_deploy.metrics.parity import ParityResult
from save_deploy.metrics.segmentation import score_videos
from save_deploy.runtime.compare.budget import check_rows, require
from save_deploy.runtime.compare.options import Budget
from save_deploy.runtime.compare.report import write_comparison
from save_deploy.runtime.compare.rows import Row
from save_deploy.runtime.compare.run import Comparison, run_comparison
from save_deploy.runtime.compare.sections import bundle_sections
from save_deploy.runtime.html import Figure, Table
from tests.runtime.compare import options, run_cli

# ---- budgets


def test_altered_weights_are_over_budget(found: Comparison) -> None:
    """The twin: the intact bundle passes where the altered one does not."""
    drop, agreed = found.checks
    assert not drop.passed and not agreed.passed
    for check in found.checks:
        assert "altered" in check.got and "demo" not in check.got
    rows = [r for r in found.rows if r.bundle != "altered"]
    assert all(c.passed for c in check_rows(rows, found.options.budget))


def some_row(name: str, bundle: str, speedup: float, m_j: float, agreement: float | None) -> Row:
    score = score_videos([(np.ones((1, 4, 4)), np.ones((1, 4, 4), bool))])
    found = None if agreement is None else ParityResult(0.1, agreement, 0.0, 1.0, 1)
    return Row(
        "b", "fp16", 1.0, LatencyResult((1.0,)), speedup, replace(score, m_j=m_j), found,
        name=name, bundle=bundle, dataset="d",
    )  # fmt: skip


def test_rules_of_the_budgets() -> None:
    """Drop and agreement: every row. Speed: the fastest backend of each bundle."""
    rows = [
        some_row("eager", "", 1.0, 70.0, None),
        some_row("A ort", "A", 0.9, 69.5, 0.99),
        some_row("A ov", "A", 2.0, 70.5, 0.98),
        some_row("B ort", "B", 1.5, 70.0, 1.0),
    ]
    checks = check_rows(rows, Budget(0.5, 0.98, 1.5))
    assert [c.passed for c in checks] == [True] * 4
    assert [c.got for c in checks] == [
        "0.50 (A ort on d)", "0.98000 (A ov on d)", "2.00 (A ov)", "1.50 (B ort)",
    ]  # fmt: skip
    require(checks)
    checks = check_rows(rows, Budget(0.4, 0.985, 1.6))
    assert [c.passed for c in checks] == [False, False, True, False]
    with pytest.raises(SaveDeployError, match=r"over budget(.|\n)*0\.50 \(A ort") as caught:
        require(checks)
    assert caught.value.exit_code == 2
    for figure in ("0.98000 (A ov on d)", "1.50 (B ort)", "at most 0.4", "at least 1.6 x"):
        assert figure in str(caught.value)
    assert check_rows(rows, Budget()) == ()
    for name in ("max_drop", "min_agreement", "min_speedup"):
        with pytest.raises(SaveDeployError, match=name.replace("_", "-")):
            Budget(**{name: float("nan")})  # no row would be over it


def test_a_speed_that_is_not_steady() -> None:
    """Of the row or of the reference; the twin is steady. The exit code is that of the value."""
    for uneven in (0, 1, None):
        rows = [some_row("eager", "", 1.0, 70.0, None), some_row("A", "A", 2.0, 70.0, 1.0)]
        if uneven is not None:
            latency = LatencyResult((1.0, 1.0, 2.0, 3.0))
            rows[uneven] = replace(rows[uneven], latency=latency)
        (check,) = check_rows(rows, Budget(min_speedup=1.5))
        assert check.passed
        assert check.unsure == ("" if uneven is None else "not steady, noise 100%")
        assert check.word == ("pass" if uneven is None else "pass (not steady, noise 100%)")
        require((check,))


@pytest.mark.thorough
def test_exit_codes(
    bundle: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    few = ["--clips", "1", "--rounds", "3", "--threads", "1"]
    strict = ["--max-drop", "0.5", "--min-agreement", "0.98"]
    assert run_cli([str(bundle), *few, *strict, "--json"], monkeypatch) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == "pass" and len(printed["rows"]) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", printed["made"])
    assert list(printed["bundles"].values()) == [sha256_of(bundle / MANIFEST)]
    assert "--min-agreement 0.98" in printed["command"]
    report = tmp_path / "report"
    arguments = [str(other), *few, *strict, "--report", str(report), "--no-memory"]
    assert run_cli(arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "M_J drop" in error and re.search(r"\d\.\d+ \(openvino fp16 on scenes\)", error)
    assert json.loads((report / "report.json").read_text())["verdict"] == "fail"
    assert "<b>✗ M_J drop</b>" in (report / "report.html").read_text()
    assert run_cli(arguments, monkeypatch) == 1  # before anything is measured
    refused = capsys.readouterr().err
    assert "output exists" in refused and "--force" in refused
    assert run_cli([*arguments, "--force"], monkeypatch) == 2
    assert "M_J drop" in capsys.readouterr().err
    assert run_cli([str(bundle), *few, "--min-speedup", "1000"], monkeypatch) == 2
    assert "speed-up of demo" in capsys.readouterr().err
    assert run_cli([str(bundle), *few, "--backend", "tensorrt"], monkeypatch) == 3
    assert run_cli([str(tmp_path), *few], monkeypatch) == 1
    (tmp_path / "file").write_text("")
    assert run_cli([str(bundle), "--report", str(tmp_path / "file")], monkeypatch) == 1
    assert "Traceback" not in capsys.readouterr().err


# ---- files


def test_report_files(found: Comparison, tmp_path: Path) -> None:
    (tmp_path / "worst_9.png").write_bytes(b"of an earlier report")
    (tmp_path / "notes.txt").write_text("mine")
    write_comparison(tmp_path, found)
    names = {p.name for p in tmp_path.iterdir()}
    pictures = {f"worst_{i}.png" for i in range(1, 7)}  # three of each dataset
    assert names == {"report.html", "report.json", "report.md", "notes.txt", *pictures}
    values = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    for row, shown in zip(found.rows, values["rows"], strict=True):
        assert (shown["name"], shown["dataset"]) == (row.name, row.dataset)
        assert shown["latency"]["samples_ms"] == [round(s, 3) for s in row.latency.samples_ms]
        assert shown["score"]["m_j"] == row.score.m_j
    agreements = [frame["agreement"] for frame in values["worst_frames"]]
    assert agreements == sorted(agreements) and values["verdict"] == "fail"
    with Image.open(tmp_path / "worst_1.png") as picture:
        assert picture.width > 5 * 256
    text = (tmp_path / "report.md").read_text()
    assert "**FAIL**: M_J drop" in text and text.count("![") == 6
    html = (tmp_path / "report.html").read_text()
    assert "Merge, each rewrite against eager in float64" in html and "demo openvino" in html
    write_comparison(tmp_path, replace(found, frames=found.frames[:1]))
    assert [p.name for p in tmp_path.glob("worst_*")] == ["worst_1.png"]


def test_a_failing_report_leaves_the_old_one(
    found: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").write_text("old")
    broken = replace(found.rows[1], speedup=float("nan"))
    with pytest.raises(SaveDeployError, match="speedup is no number"):
        write_comparison(tmp_path, replace(found, rows=(found.rows[0], broken)))
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


@pytest.mark.thorough
def test_memory_is_of_a_process_of_its_own(bundle: Path) -> None:
    asked = options((bundle,), memory=True)
    eager, ours = run_comparison(asked).rows
    assert eager.peak_memory_mib is not None and ours.peak_memory_mib is not None
    assert 50 < ours.peak_memory_mib < eager.peak_memory_mib  # no torch in it


def test_sections_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    Image.new("RGB", (2, 2)).save(copy / "sensitivity.png")
    report = json.loads((copy / "report.json").read_text())
    report |= {
        "block_sqnr_db": [41.94, None],
        "search": {
            "max_drop": 0.5,
            "eager": {"m_j": 70.0},
            "chosen": {"m_j": 69.8, "agreement": 1},
        },
    }
    (copy / "report.json").write_text(json.dumps(report))
    manifest = Manifest.read(copy)
    manifest.files["sensitivity.png"] = FileRecord("", 0)
    quantization = {
        "format": "int8",
        "products": ["a", "b"],
        "calibration": {"method": "minmax", "pairs": 64, "source": "stamps"},
        "kernels": {"openvino": {"asked": 54, "int8": 53}},
    }
    engine = {
        "file": "model.plan", "library": "tensorrt", "library_version": "11", "targets": ["SM89"],
        "engine_bytes": 5_000_000, "receipt": {"attentions": 6, "fused": 5, "kernels": [1, 2]},
    }  # fmt: skip
    manifest = replace(
        manifest,
        precision={**manifest.precision, "quantization": quantization},
        engines=(engine,),
    )
    found = {s.title: s.body for s in bundle_sections(copy, manifest, "m")}
    rewrites = manifest.merge["rewrites"]
    merge = found["m: Merge, each rewrite against eager in float64"]
    assert isinstance(merge, Table) and [r[0] for r in merge.rows] == [r["name"] for r in rewrites]
    blocks = found["m: Signal to noise of every encoder block against float"]
    assert isinstance(blocks, Table) and blocks.rows == (("0", "41.9"), ("1", "equal"))
    quantized = found["m: Quantization and its calibration"]
    assert isinstance(quantized, Table)
    assert {
        ("measured on", "64 pairs of stamps"),
        ("INT8 kernels on openvino", "53 of 54"),
    } <= set(quantized.rows)
    receipt = found["m: Engine model.plan"]
    assert isinstance(receipt, Table)
    assert {("attentions in one kernel", "5"), ("kernels", "2"), ("GPUs", "SM89")} <= set(
        receipt.rows
    )
    assert isinstance(found["m: Precision search, one unit alone quantized"], Figure)
    assert "m: Precision search, budget 0.5 M_J points" in found
    whole = len(found)
    strange = replace(manifest, merge={"rewrites": [{"name": "windows"}]})
    assert len(bundle_sections(copy, strange, "m")) == whole - 1
    (copy / "report.json").write_text('{"search": 3, "block_sqnr_db": {"a": []}}')
    assert len(bundle_sections(copy, strange, "m")) == whole - 3
    (copy / "report.json").unlink()
    assert len(bundle_sections(copy, strange, "m")) == whole - 3
    plain = [s.title for s in bundle_sections(bundle, Manifest.read(bundle))]
    assert plain[0].startswith("Merge") and not any("alibration" in title for title in plain)


def test_skipped_clips_are_named(bundle: Path, s4: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(s4, tmp_path / "Single-source"))
    next((tree / "s4_data").rglob("*_test_0_3.png")).write_bytes(b"bad")
    asked = options((bundle,), data=(str(tree),), skip_bad=True, clips=None)
    result = run_comparison(asked)
    assert list(result.skipped) == ["dog_test_0"] and result.rows[0].score.n_videos == 1
