"""save-compare: figures against the metrics, frames against a brute-force order, budgets, files."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from save_deploy.bundle import Manifest, sha256_of
from save_deploy.data.open import open_dataset
from save_deploy.data.scenes import Scenes
from save_deploy.data.transforms import resize_mask
from save_deploy.errors import BackendError, BundleError, CheckpointError, SaveDeployError
from save_deploy.metrics.interval import bootstrap_interval
from save_deploy.metrics.margin import MarginMeter
from save_deploy.metrics.parity import parity
from save_deploy.metrics.segmentation import AVSBENCH, frame_iou, score_videos
from save_deploy.runtime.compare import accuracy as accuracy_module
from save_deploy.runtime.compare import plan, run, speed
from save_deploy.runtime.compare.accuracy import measure_accuracy, predict_clip
from save_deploy.runtime.compare.entries import Entry, Pool
from save_deploy.runtime.compare.others import Watch
from save_deploy.runtime.compare.report import print_comparison
from save_deploy.runtime.compare.run import Comparison, run_comparison
from save_deploy.runtime.compare.table import WIDTH
from save_deploy.runtime.compare.worst import frame_badness, worst_row
from save_deploy.runtime.pipeline import load
from tests.runtime.compare import open_pair, options


def predicted(bundle: Path, clips: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(logits of eager, of the bundle, truth) per clip, each pipeline on its own."""
    pipelines, _ = open_pair(bundle)
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


def test_badness_of_a_frame() -> None:
    """Worked by hand: 4 pixels of the reference, of which the rows lose one and two."""
    reference = np.zeros((4, 4), bool)
    reference[0] = True
    one, two = reference.copy(), reference.copy()
    one[0, 0] = two[0, :2] = False
    masks = {"one": one, "two": two}
    assert (
        frame_badness(reference, masks, 3) == (0.5, 2, -3) and worst_row(reference, masks) == "two"
    )
    empty = np.zeros_like(reference)
    assert frame_badness(empty, {"empty": empty}, 0) == (0.0, 0, 0)


@pytest.mark.thorough
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
    pipelines, sizes = open_pair(bundle)
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


def test_threshold_is_that_of_masks_and_scores(bundle: Path) -> None:
    """--threshold: M_J of masks cut at that probability, against numpy; not that of one half."""
    clips = Scenes(n_clips=1)
    ((eager, ours, truth),) = predicted(bundle, [clips[0]])
    pipelines, sizes = open_pair(bundle)
    entries = [Entry(n, p.backend, p.precision, sizes[n]) for n, p in pipelines.items()]
    scores = {}
    for threshold in (0.5, 0.9):
        rules = replace(AVSBENCH, threshold=threshold)
        pool = Pool(resident=True, opened=pipelines)
        found, _ = measure_accuracy(pool, entries, clips, res=256, worst=0, protocol=rules)
        cut = np.log(threshold / (1 - threshold))
        for name, logits in (("eager", eager), ("bundle", ours)):
            ious = [
                ((one > cut) & real).sum() / ((one > cut) | real).sum()
                for one, real in zip(logits, truth, strict=True)
            ]
            assert found[name].score.m_j == pytest.approx(100 * np.mean(ious), abs=0.01)
        scores[threshold] = found["bundle"].score.m_j
    assert scores[0.5] != scores[0.9]


@pytest.mark.thorough
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
    assert "together too large for memory" in again.note


def test_rounds_go_on_until_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def fake(calls: Any, watch: Watch, rounds: int, warmup: int, *_: Any) -> dict[str, list[float]]:
        taken.append(warmup)
        return {"a": [1.0] * rounds if steady else [1.0, 2.0, 3.0]}

    monkeypatch.setattr(speed, "_time_rounds", fake)
    for steady, warmups in ((True, [2]), (False, [2, 0, 0])):
        taken.clear()
        result = speed.Timing(speed._until_steady({"a": print}, Watch(), 3, 60.0, 1, print))
        assert taken == warmups and result.steady is steady
        assert len(result.latency["a"].samples_ms) == 3 * len(warmups)
    taken.clear()
    speed._until_steady({"a": print}, Watch(), 3, 0.0, 1, print)
    assert taken == [2]  # the budget of time is over


# ---- which rows


@pytest.mark.thorough
def test_each_resolution_has_its_reference(
    bundle: Path, small: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options((bundle, small), backends=("all",), checkpoints=(tiny_checkpoint,))
    both = run_comparison(asked)
    of_demo, of_small = (  # rows of other models are named after them too
        [(r.dataset[:14], r.name) for r in both.rows if res in r.dataset] for res in ("256", "224")
    )
    assert of_demo == [
        ("scenes, 256 px", "eager"),
        ("scenes, 256 px", "demo onnxruntime fp16"),
        ("scenes, 256 px", "demo openvino fp16"),
    ]
    assert of_small == [
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
    assert "…" not in printed and "224 px" in printed


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

    monkeypatch.setattr("save_deploy.runtime.eager.open_eager", forbidden)
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
    save_file({"w": np.zeros(1, np.float32)}, other)
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = Manifest.read(copy)
    record = {"name": other.name, "sha256": sha256_of(other), "size": other.stat().st_size}
    replace(manifest, source={"files": [record]}).write(copy)
    groups = plan.make_plan(options((bundle, copy), checkpoints=(other,))).groups
    assert [g.entries[0].eager.checkpoint.name for g in groups if g.entries[0].eager] == [
        "save_vit_t_256.safetensors", "other.safetensors",
    ]  # fmt: skip
    assert groups[1].words.startswith("other ")
    with pytest.raises(BundleError, match="another checkpoint"):
        run_comparison(options((bundle,), checkpoints=(other,)))


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
