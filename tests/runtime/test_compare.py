"""save-compare: figures against the metrics, frames against a brute-force order, budgets, files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from save_deploy import cli
from save_deploy.data.open import open_dataset
from save_deploy.data.scenes import Scenes
from save_deploy.data.transforms import resize_mask
from save_deploy.errors import BackendError, BundleError, CheckpointError, SaveDeployError
from save_deploy.manifest import FileRecord, Manifest, sha256_of
from save_deploy.metrics.interval import bootstrap_interval
from save_deploy.metrics.latency import LatencyResult
from save_deploy.metrics.margin import MarginMeter
from save_deploy.metrics.parity import ParityResult, parity
from save_deploy.metrics.segmentation import frame_iou, score_videos
from save_deploy.runtime.compare import predict_clip
from save_deploy.runtime.comparison import (
    Budget,
    CompareOptions,
    Comparison,
    gpu,
    plan,
    run,
    run_comparison,
    speed,
)
from save_deploy.runtime.comparison import accuracy as accuracy_module
from save_deploy.runtime.comparison.accuracy import measure_accuracy
from save_deploy.runtime.comparison.budget import check_rows, require
from save_deploy.runtime.comparison.entries import Entry, Pool
from save_deploy.runtime.comparison.output import write_comparison
from save_deploy.runtime.comparison.row import Row
from save_deploy.runtime.comparison.sections import bundle_sections
from save_deploy.runtime.comparison.table import WIDTH, print_comparison
from save_deploy.runtime.html import Figure, Table
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.reference import open_with_reference
from tests.calibration.samples import write_s4


@pytest.fixture(scope="module")
def other(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of model.onnx changed, hashes made right again: intact, and wrong."""
    folder = tmp_path_factory.mktemp("altered") / "altered"
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim >= 2 and np.issubdtype(values.dtype, np.floating) and values.size > 1000:
            noise = np.random.default_rng(0).normal(size=values.shape) * values.std()
            changed = (values + 0.3 * noise).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, folder / "model.onnx")
    manifest = Manifest.read(folder)
    path = folder / "model.onnx"
    manifest.files["model.onnx"] = FileRecord(sha256_of(path), path.stat().st_size)
    manifest.write(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in checkpoint at another resolution, in FP32."""
    from save_deploy.export.options import ExportOptions
    from save_deploy.export.run import export_bundle

    folder = tmp_path_factory.mktemp("small") / "small"
    export_bundle(
        ExportOptions(precision="fp32", res=224, out=folder, n_golden=2, rounds=3, threads=1)
    )
    return folder


@pytest.fixture(scope="module")
def s4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_s4(tmp_path_factory.mktemp("s4"), {"dog": 1}, test=2)


@pytest.fixture(scope="module")
def found(bundle: Path, other: Path, s4: Path) -> Comparison:
    """Two bundles, two datasets of two clips, the default backend."""
    asked = options(
        (bundle, other), data=("scenes", str(s4)), clips=2, frames=3,
        budget=Budget(max_drop=0.5, min_agreement=0.9),
    )  # fmt: skip
    return run_comparison(asked)


def options(bundles: tuple[Path, ...], **changes: Any) -> CompareOptions:
    """On one thread: cores may be busy, and threads that wait for each other are then very slow."""
    return CompareOptions(bundles, **{"threads": 1, "rounds": 3, "clips": 1, **changes})


def run_cli(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["save-compare", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.compare_main()
    return int(caught.value.code or 0)


def predicted(bundle: Path, clips: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(logits of eager, of the bundle, truth) per clip, each pipeline on its own."""
    pipelines, _ = open_with_reference(bundle, threads=1)
    eager, ours = pipelines["eager"], pipelines["bundle"]
    res = eager.config.res
    return [
        (
            predict_clip(eager, clip),
            predict_clip(ours, clip),
            np.stack([resize_mask(m, res) for m in clip.masks]),
        )
        for clip in clips
    ]


# ---- figures


def test_figures_are_those_of_the_metrics(found: Comparison, bundle: Path, s4: Path) -> None:
    sources = {"scenes": Scenes(n_clips=2), str(s4): open_dataset(str(s4), n_clips=2)}
    assert [(r.dataset, r.bundle) for r in found.rows] == [
        (d, b) for d in sources for b in ("", "demo", "altered")
    ]
    for dataset, clips in sources.items():
        logits = predicted(bundle, [clips[i] for i in range(2)])
        eager, ours, _ = [r for r in found.rows if r.dataset == dataset]
        assert eager.score == score_videos((e, t) for e, _, t in logits)
        assert ours.score.m_j == pytest.approx(score_videos((o, t) for _, o, t in logits).m_j)
        all_eager = np.concatenate([e for e, _, _ in logits])
        all_ours = np.concatenate([o for _, o, _ in logits])
        assert ours.parity == parity(all_eager, all_ours)
        meter = MarginMeter()
        meter.add(all_eager, all_ours)
        assert ours.margin == meter.result()
        per_video = [float(frame_iou(e > 0, t).mean()) for e, _, t in logits]
        low, high = bootstrap_interval([100 * j for j in per_video])
        assert eager.score.m_j_interval == pytest.approx((low, high))
    assert eager.parity is None and eager.reference


def test_speed_is_of_the_same_rounds(found: Comparison) -> None:
    for row in found.rows:
        base = next(r for r in found.rows if r.reference and r.dataset == row.dataset)
        pairs = zip(base.latency.samples_ms, row.latency.samples_ms, strict=True)
        assert row.speedup == pytest.approx(np.median([a / b for a, b in pairs]))
        assert len(row.latency.samples_ms) in (3, 6, 9)
        split = row.time_split
        assert split is not None and min(vars(split).values()) > 0
    assert found.rows[0].speedup == 1.0


def test_worst_frames_are_the_worst(bundle: Path) -> None:
    """Against sorting all frames, whatever the number kept; in one chunk or clip by clip."""
    clips = Scenes(n_clips=3)
    pairs = predicted(bundle, [clips[i] for i in range(3)])
    frames: list[tuple[float, float, int, str]] = []
    for i, (eager, ours, _) in enumerate(pairs):
        for k in range(5):
            result = parity(eager[k : k + 1], ours[k : k + 1])
            name = f"{clips[i].name}_{k + 1}"
            frames.append((result.mask_agreement, -result.flipped, len(frames), name))
    pipelines, sizes = open_with_reference(bundle, threads=1)
    entries = [Entry(n, p.backend, p.precision, sizes[n]) for n, p in pipelines.items()]
    for resident in (True, False):
        pool = Pool(resident=resident, opened=pipelines)
        for n in (0, 4, 99):
            _, worst = measure_accuracy(pool, entries, clips, res=256, worst=n)
            assert [f.name for f in worst] == [f[3] for f in sorted(frames)[:n]]
    shown = worst[0]
    i, k = (int(part) for part in re.findall(r"_(\d+)_(\d)$", shown.name)[0])
    eager, ours, truth = pairs[i]
    assert (shown.reference == eager[k - 1]).all() and (shown.truth == truth[k - 1]).all()
    assert (shown.masks["bundle"] == (ours[k - 1] > 0)).all()
    assert (shown.frame == clips[i].frames[k - 1]).all() and shown.waveform.shape == (16_000,)


def test_one_model_at_a_time_gives_the_same(
    bundle: Path, found: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they do not fit together: chunks, everything closed in between, the same figures."""
    open_now: list[str] = []
    most = 0

    def counted(self: Entry) -> Any:
        nonlocal most
        pipeline = real(self)
        open_now.append(self.name)
        most = max(most, len(open_now))
        close = pipeline.close

        def closed() -> None:
            open_now.remove(self.name)
            close()

        monkeypatch.setattr(pipeline, "close", closed)
        return pipeline

    real = Entry.open
    monkeypatch.setattr(Entry, "open", counted)
    monkeypatch.setattr(run, "fit_together", lambda *_: False)
    monkeypatch.setattr(accuracy_module, "CHUNK_BYTES", 1)
    again = run_comparison(options((bundle,), clips=2, frames=2))
    assert most == 1 and open_now == []
    assert [r.score for r in again.rows] == [r.score for r in found.rows[:2]]
    assert again.rows[1].parity == found.rows[1].parity
    assert {len(r.latency.samples_ms) for r in again.rows} == {6}
    assert "too large to hold together" in again.note


def test_rounds_go_on_until_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def fake(calls: Any, *, rounds: int, warmup: int, **_: Any) -> dict[str, LatencyResult]:
        taken.append(warmup)
        return {"a": LatencyResult((1.0,) * rounds if steady else (1.0, 2.0, 3.0))}

    monkeypatch.setattr(speed, "time_interleaved", fake)
    for steady, warmups in ((True, [2]), (False, [2, 0, 0])):
        taken.clear()
        result = speed.Timing(speed._until_steady({}, 3, 60.0, 1))
        assert taken == warmups and result.steady is steady
        assert len(result.latency["a"].samples_ms) == 3 * len(warmups)
    taken.clear()
    speed._until_steady({}, 3, 0.0, 1)
    assert taken == [2]  # the budget of time is over


# ---- which rows


def test_each_resolution_has_its_reference(
    bundle: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = run_comparison(options((bundle, small), backends=("all",)))
    assert [(r.dataset, r.name) for r in both.rows] == [
        ("scenes, 256 px", "eager"),
        ("scenes, 256 px", "demo onnxruntime fp16"),
        ("scenes, 256 px", "demo openvino fp16"),
        ("scenes, 224 px", "eager"),
        ("scenes, 224 px", "small onnxruntime fp32"),
        ("scenes, 224 px", "small openvino fp32"),
    ]
    fp32 = [r.parity for r in both.rows if r.precision == "fp32" and r.parity]
    assert len(fp32) == 2 and all(p.max_abs_err < 1e-3 for p in fp32)
    left_out = both.sections[0]
    assert left_out.title == "Backends left out" and "tensorrt_rtx left out" in str(left_out.body)
    print_comparison(both)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    assert "…" not in printed and "scenes, 224 px" in printed


def test_long_names_keep_the_table_readable(
    found: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tuple(
        replace(
            r, name=f"save_vit_h_1024_int8_fp16_{i} onnxruntime-tensorrt", peak_memory_mib=12345
        )
        for i, r in enumerate(found.rows)
    )
    print_comparison(replace(found, rows=rows))
    printed = capsys.readouterr().out
    assert "…" not in printed
    for row in rows:
        assert f"{row.score.m_f:.3f}" in printed
        assert f"{row.latency.percentile(99):.1f}" in printed
    tables = printed[: printed.index("frames of")]
    assert max(map(len, tables.splitlines())) <= WIDTH


def test_without_eager_the_first_is_the_reference(
    bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("no eager model was wanted")

    monkeypatch.setattr("save_deploy.runtime.reference.open_eager", forbidden)
    asked = options((bundle, other), eager=False)
    first, second = run_comparison(asked).rows
    assert (first.bundle, second.bundle) == ("demo", "altered")
    assert first.reference and second.parity is not None and second.parity.mask_agreement < 0.99
    with pytest.raises(SaveDeployError, match="nothing to compare with"):
        run_comparison(replace(asked, bundles=(bundle, bundle)))


def test_labels(tmp_path: Path) -> None:
    a, b, c = tmp_path / "x" / "m", tmp_path / "y" / "m", tmp_path / "c"
    assert plan.labels([a, b, c, tmp_path / "x" / ".." / "c"]) == {str(a): a, str(b): b, "c": c}


def test_same_backend_twice_is_one_row(bundle: Path) -> None:
    with load(bundle) as pipeline:
        best = pipeline.backend
    asked = options((bundle, bundle), backends=("auto", best, best))
    (group,) = plan.make_plan(asked).groups
    assert [e.name for e in group.entries] == ["eager", f"{best} fp16"]


# ---- what is refused


def test_another_checkpoint(bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(bundle)
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest.source["files"][0]["sha256"] = "0" * 64
    manifest.write(copy)
    with pytest.raises(BundleError, match=r"another checkpoint(.|\n)*000000000000"):
        run_comparison(options((bundle, copy)))
    with pytest.raises(CheckpointError, match="not found"):
        run_comparison(options((bundle,), checkpoints=(tmp_path / "no.safetensors",)))


def test_checkpoints_of_several_bundles(bundle: Path, tmp_path: Path) -> None:
    """One is given, the built-in one is found beside it; alone, a wrong one is never replaced."""
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"x")
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = Manifest.read(copy)
    record = {"name": other.name, "sha256": sha256_of(other), "size": 1}
    replace(manifest, source={"files": [record]}).write(copy)
    groups = plan.make_plan(options((bundle, copy), checkpoints=(other,))).groups
    assert [g.entries[0].eager.checkpoint.name for g in groups if g.entries[0].eager] == [
        "save_vit_t_256.safetensors", "other.safetensors",
    ]  # fmt: skip
    assert groups[1].words.startswith("other ")
    with pytest.raises(BundleError, match="another checkpoint"):
        run_comparison(options((bundle,), checkpoints=(other,)))


def test_imports_without_torch() -> None:
    for module in ("runtime.compare", "runtime.comparison.output", "verbs.compare"):
        code = f"import sys; sys.modules['torch'] = None; import save_deploy.{module}"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_named_backend_must_run(bundle: Path) -> None:
    for backends in (("tensorrt",), ("all", "tensorrt")):
        with pytest.raises(BackendError, match="demo: the bundle has no engine") as caught:
            run_comparison(options((bundle,), backends=backends))
        assert caught.value.exit_code == 3 and caught.value.hint
    with pytest.raises(BackendError, match="unknown backend"):
        run_comparison(options((bundle,), backends=("abacus",)))


def test_altered_file(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="altered"):
        run_comparison(options((copy,)))


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


def test_exit_codes(
    bundle: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    few = ["--clips", "1", "--rounds", "3", "--threads", "1"]
    strict = ["--max-drop", "0.5", "--min-agreement", "0.98"]
    assert run_cli([str(bundle), *few, *strict, "--json"], monkeypatch) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == "pass" and len(printed["rows"]) == 2
    report = tmp_path / "report"
    arguments = [str(other), *few, *strict, "--report", str(report), "--no-memory"]
    assert run_cli(arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "M_J drop" in error and re.search(r"\d\.\d+ \(openvino fp16 on scenes\)", error)
    assert json.loads((report / "report.json").read_text())["verdict"] == "fail"
    assert "<b>✗ M_J drop</b>" in (report / "report.html").read_text()
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
        ("8-bit kernels on openvino", "53 of 54"),
    } <= set(quantized.rows)
    receipt = found["m: Engine model.plan"]
    assert isinstance(receipt, Table)
    assert {("fused", "5"), ("kernels", "2"), ("GPUs", "SM89")} <= set(receipt.rows)
    assert isinstance(found["m: Precision search, one unit alone in 8 bits"], Figure)
    assert "m: Precision search, budget 0.5 M_J points" in found
    plain = [s.title for s in bundle_sections(bundle, Manifest.read(bundle))]
    assert plain[0].startswith("Merge") and not any("alibration" in title for title in plain)


def test_gpus(tmp_path: Path) -> None:
    assert gpu.describe_gpus(str(tmp_path / "none")) == []
    script = tmp_path / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\necho 'A GPU, 580.65, 24564 MiB, 2520 MHz, 3105 MHz, 10501 MHz, Enabled'\n"
    )
    script.chmod(0o755)
    assert gpu.describe_gpus(str(script)) == [
        "A GPU, driver 580.65, 24564 MiB, SM 2520 MHz, of at most 3105 MHz, memory 10501 MHz, "
        "persistence Enabled"
    ]
    script.write_text("#!/bin/sh\nexit 9\n")
    assert gpu.describe_gpus(str(script)) == []


def test_skipped_clips_are_named(bundle: Path, s4: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(s4, tmp_path / "Single-source"))
    next((tree / "s4_data").rglob("*_test_0_3.png")).write_bytes(b"bad")
    asked = options((bundle,), data=(str(tree),), skip_bad=True, clips=None)
    result = run_comparison(asked)
    assert list(result.skipped) == ["dog_test_0"] and result.rows[0].score.n_videos == 1
