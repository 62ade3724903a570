"""A recipe from data on disk to its number: stages found, counted, trained one from the other."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from save_deploy import cli
from save_deploy.checkpoints.native import read_header, save_checkpoint
from save_deploy.cli import train
from save_deploy.data.compose import Staging
from save_deploy.errors import DataError, SaveDeployError
from save_deploy.recipes.recipe import load_recipe
from save_deploy.training.batches import MixedSamples
from save_deploy.training.chain import plan_chain
from save_deploy.training.options import TrainConfig
from tests.conftest import make_tiny
from tests.data import trees

ROW = """
table = "none"
row = "mine"
title = "a small row of one's own"
system = "save_star"
backbone = "vit_t"
res = 256
[[stage]]
dataset = "syn"
towards = ["ms3"]
epochs = 1
item = "frame"
batch = 1
gpus = 2
lr = 1e-4
schedule = "cosine"
final_lr = 1e-7
warmup_steps = 0
weight_decay = 0.01
loss = "bce+iou"
[[stage]]
dataset = "ms3"
towards = ["ms3"]
epochs = 1
item = "video"
batch = 1
gpus = 1
lr = 1e-4
schedule = "constant"
warmup_steps = 0
weight_decay = 0.01
loss = "bce"
[test]
ms3 = "test"
[paper.ms3]
m_j = 60.0
m_f = 0.7
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "data"
    trees.write_s4(base)
    trees.write_ms3(base)
    trees.write_synthetic(base / "AVS-Synthetic")
    return base


def run(*args: object) -> int:
    """The command line in this process -> its exit code."""
    argv, sys.argv = sys.argv, ["save-deploy", *map(str, args)]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = argv
    return 0


def test_stages_of_a_table_row(root: Path, tmp_path: Path) -> None:
    """Syn -> S4 -> MS3 with the paper's batch: 16 frames on each of two GPUs; on one device in two
    parts, in eight when only four frames fit."""
    recipe = load_recipe("t2_save_256_ft_syn")
    planned = plan_chain(recipe, "ms3", root, tmp_path / "run")
    assert [p.folder.name for p in planned] == ["1_syn", "2_s4", "3_ms3"]
    assert [p.config.batch_size for p in planned] == [32, 32, 32]
    assert [p.config.accumulate for p in planned] == [2, 2, 2]
    assert [p.config.steps for p in planned] == [80, 80, 80]  # fewer than 32 frames an epoch
    assert planned[2].config.final_lr_ratio == pytest.approx(1e-7 / 2e-4)
    assert not any(p.finished for p in planned)
    small = plan_chain(recipe, "s4", root, tmp_path / "run", batch_per_device=4)
    assert [(p.folder.name, p.config.accumulate) for p in small] == [("1_syn", 8), ("2_s4", 8)]


def test_a_bad_row_is_counted_out(root: Path, tmp_path: Path) -> None:
    """A metadata row with too few columns stops the plan, or is left out with skip_bad."""
    meta = root / "Single-source" / "s4_meta_data.csv"
    meta.write_text(meta.read_text() + "alone\n")
    recipe = load_recipe("t1_save_256")
    with pytest.raises(DataError, match=meta.name):
        plan_chain(recipe, "s4", root, tmp_path)
    (plan,) = plan_chain(recipe, "s4", root, tmp_path, base=TrainConfig(data={}, skip_bad=True))
    assert plan.n_items > 0


def test_missing_data_and_rows_without_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="v2"):
        plan_chain(load_recipe("t3_save"), "v2", root, tmp_path)
    with pytest.raises(SaveDeployError, match=r"no training stages(.|\n)*save-eval --recipe"):
        plan_chain(load_recipe("t1_sam"), "s4", root, tmp_path)


@pytest.mark.thorough
def test_chain_trains_resumes_and_is_scored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, out = tmp_path / "mine.toml", tmp_path / "run"
    row.write_text(ROW)
    args = ("--recipe", row, "--root", root)
    assert run("train", *args, "--steps", 1, "-o", out) == 0
    text = capsys.readouterr().out
    assert "1_syn" in text and "2_ms3" in text and "save-eval" in text
    best = out / "2_ms3" / "best.safetensors"
    config, _ = read_header(best)
    assert (config.system, config.name, config.res) == ("save_star", "vit_t", 256)
    written = best.stat().st_mtime_ns
    assert run("train", *args, "--steps", 1, "-o", out, "--resume") == 0
    assert best.stat().st_mtime_ns == written  # finished stages are not run again
    capsys.readouterr()
    assert run("eval", best, *args, "--json", tmp_path / "score.json") == 0
    text = capsys.readouterr().out
    assert "60.00" in text and "[" in text and (tmp_path / "score.json").is_file()
    assert run("eval", *args) == 1  # the built-in checkpoint is SAVE(**)
    assert "another system" in capsys.readouterr().err


@pytest.mark.slow
def test_bad_clips_stop_or_are_listed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row without a file: an error that names both; with --skip-bad the run goes on."""
    checkpoint = tmp_path / "tiny.safetensors"
    save_checkpoint(checkpoint, make_tiny())
    frames = sorted((root / "Single-source").rglob("visual_frames/test/*/*/*_2.png"))
    frames[0].unlink()
    command = ("eval", checkpoint, "--data", root / "Single-source")
    assert run(*command) == 1
    error = capsys.readouterr().err
    assert frames[0].name in error and "row" in error and "Traceback" not in error
    assert run(*command, "--skip-bad") == 0
    text = capsys.readouterr().out
    assert "skipped" in text and frames[0].name in text
    assert run("data", "check", root / "Single-source") == 1
    assert frames[0].name in capsys.readouterr().out


def test_an_epoch_is_every_frame_once(root: Path) -> None:
    """A new order each epoch; by video, the frames of one stay together."""

    def drawn(epoch: int, by_video: bool) -> list[str]:
        samples = MixedSamples(
            {str(root / "Multi-sources"): 1.0}, res=32, staging=Staging(), seed=3, n_classes=4,
            by_video=by_video,
        )  # fmt: skip
        (pairs,) = samples._pairs.values()
        n = len(pairs)
        return [samples.sample(i).name for i in range(epoch * n, (epoch + 1) * n)]

    first, second = drawn(0, False), drawn(1, False)
    assert sorted(first) == sorted(second) == sorted(set(first)) and first != second
    videos = [name.rsplit("_", 1)[0] for name in drawn(0, True)]
    changes = sum(a != b for a, b in itertools.pairwise(videos))
    assert changes == len(set(videos)) - 1


def test_the_same_item_is_the_same_frame(root: Path) -> None:
    def item() -> np.ndarray:
        samples = MixedSamples(
            {str(root / "Single-source"): 1.0}, res=32, staging=Staging(), seed=0, n_classes=4
        )
        return samples[2][0]

    np.testing.assert_array_equal(item(), item())


@pytest.mark.slow
def test_tables_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """systems and recipes print what they know; a name that is none is answered with near ones."""
    assert run("systems", "--backbone", "vit_b", "--json", tmp_path / "systems.json") == 0
    assert "193,825,408" in capsys.readouterr().out and (tmp_path / "systems.json").is_file()
    assert run("recipes", "t1_save_1024") == 0
    text = capsys.readouterr().out
    assert "85.11" in text and "84.06" in text and "83.11" in text
    assert run("recipes") == 0 and "t9" in capsys.readouterr().out
    assert run("recipes", "t1_save_1023") == 1
    assert "t1_save_1024" in capsys.readouterr().err
    assert run("train", "--recipe", "t1_sam", "--estimate") == 1
    assert "nothing to train" in capsys.readouterr().err
    assert run("train", "--recipe", "t1_save_256") == 1
    assert "--root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "named"),
    [(["--lr", "1e-4"], "--lr"), (["--batch", "4"], "--batch"), (["--system", "gavs"], "--system"),
     (["--res", "1024"], "--res"), (["--data", "scenes"], "--data"), (["--freeze"], "--freeze")],
)  # fmt: skip
def test_what_a_row_sets_cannot_be_set(
    given: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--recipe", "t1_save_256", "--root", "nowhere", *given) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "options that exclude each other" in error and named in error and "--recipe" in error


@pytest.mark.parametrize(
    ("row", "largest"),
    [("t7_sama_256", (1024, 2)), ("t1_gavs", (1024, 5)), ("t1_save_256", (256, 16))],
)
def test_estimate_is_of_the_largest_stage(
    row: str, largest: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAMA-AVS at 256 px trains at 1024 px; GAVS counts videos, of 5 labeled frames in MS3."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        train, "print_estimate", lambda size, _savings, n, **_: asked.append((size.res, n))
    )
    assert run("train", "--recipe", row, "--estimate") == 0
    assert asked == [largest]
