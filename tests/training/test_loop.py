"""The loop: learns, resumes to the same weights, freezes what it says, stops on NaN."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import pytest
import torch

from save_deploy.checkpoints.inspect import inspect_checkpoint
from save_deploy.checkpoints.native import read_native, sam_fingerprint
from save_deploy.errors import OutputError, SaveDeployError
from save_deploy.metrics.segmentation import PROTOCOLS
from save_deploy.training.curve import plot_curve
from save_deploy.training.evaluate import evaluate
from save_deploy.training.loop import learning_rate, train
from save_deploy.training.options import METRICS, TrainConfig
from save_deploy.training.parameters import trainable_parameters
from save_deploy.training.start import fresh_model
from save_deploy.weight_files import open_safetensors, read_notes
from tests.command import run

CONFIG = TrainConfig(
    data={"scenes": 1.0}, n_val_clips=2, steps=4, batch_size=2, lr=1e-3, warmup_steps=2,
    aux_weight=0.1, eval_every=2, save_every=2, n_objects=(2, 2),
)  # fmt: skip


def model(tiny):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return fresh_model(tiny().config)


@pytest.mark.slow
def test_loss_falls(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    losses: list[float] = []
    config = dataclasses.replace(CONFIG, steps=30, batch_size=4, eval_every=30, save_every=30)
    best = train(model(tiny), config, tmp_path, on_step=lambda p: losses.append(p.loss))
    assert len(losses) == 30 and sum(losses[-5:]) < sum(losses[:5])
    assert best.is_file() and inspect_checkpoint(best).notes["step"] == 30
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 30 and 0 <= rows[-1]["m_j"] <= 100
    picture = plot_curve(tmp_path)
    assert picture is not None and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    straight = model(tiny)
    train(straight, CONFIG, tmp_path / "a")

    class Stop(Exception):
        pass

    def stop(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.step == 3:  # after the save at step 2, before the one at step 4
            raise Stop

    interrupted, resumed = model(tiny), model(tiny)
    with pytest.raises(Stop):
        train(interrupted, CONFIG, tmp_path / "b", on_step=stop)
    train(resumed, CONFIG, tmp_path / "b", resume=True)
    for (name, a), (_, b) in zip(
        straight.named_parameters(), resumed.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_options(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Other data, rates or seeds are refused, and named; its length and its validation may change."""
    config = dataclasses.replace(CONFIG, steps=2, eval_every=1, save_every=1)
    train(model(tiny), config, tmp_path)
    rows = (tmp_path / "curve.jsonl").read_text()
    with (tmp_path / "curve.jsonl").open("a") as file:  # of a step after the last save
        file.write(json.dumps({"step": 3, "m_j": 1.0}) + "\n")
    for change in (
        {"data": {"scenes": 2.0}}, {"lr": 1e-4}, {"seed": 1}, {"batch_size": 4}, {"ema": 0.9},
    ):  # fmt: skip
        other = dataclasses.replace(config, steps=3, **change)  # type: ignore[arg-type]
        with pytest.raises(
            SaveDeployError, match=rf"{next(iter(change))} was .* and is"
        ) as refused:
            train(model(tiny), other, tmp_path, resume=True)
        assert "best.safetensors" in (refused.value.hint or "")
    longer = dataclasses.replace(config, steps=3, eval_every=3, n_val_clips=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("save_deploy.data.compose.VERSION", 99)
        with pytest.raises(SaveDeployError, match="clips are those of an earlier version"):
            train(model(tiny), longer, tmp_path, resume=True)
    train(model(tiny), longer, tmp_path, resume=True)
    found = (tmp_path / "curve.jsonl").read_text()
    steps = [json.loads(row)["step"] for row in found.splitlines()]
    assert found.startswith(rows) and steps == [1, 2, 3]


@pytest.mark.slow
def test_bf16_moments_are_rounded_alike_after_a_resume(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = dataclasses.replace(
        CONFIG, val_data=None, save_every=2, savings=dataclasses.replace(CONFIG.savings, moments="bf16")
    )  # fmt: skip
    straight, first, resumed = model(tiny), model(tiny), model(tiny)
    train(straight, config, tmp_path / "a")

    def stop(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.step == 3:
            raise KeyError

    with pytest.raises(KeyError):
        train(first, config, tmp_path / "b", on_step=stop)
    train(resumed, config, tmp_path / "b", resume=True)
    pairs = zip(straight.parameters(), resumed.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) <= 1e-6


@pytest.mark.parametrize(
    "options",
    [{"metrics": "avsbanch"}, {"loss": "dice"}, {"sound_batch": 8}, {"sound_steps": 8}],
)
def test_options_are_checked_before_training(options: dict[str, object]) -> None:
    with pytest.raises(SaveDeployError):
        TrainConfig(data={"scenes": 1.0}, **options)  # type: ignore[arg-type]
    assert tuple(PROTOCOLS) == METRICS


@pytest.mark.parametrize(
    ("option", "text"),
    [("--data", "scenes=0"), ("--data", "scenes=-1"), ("--data", "scenes=nan"), ("--data", "scenes=a"),
     ("--objects", "4-2"), ("--objects", "0-2"), ("--scale", "0.5-nan"), ("--sources", "nan,1"),
     ("--sources", "0,0"), ("--sources", "1,1,1,1"), ("--seed", "-1"), ("--lr", "-1"),
     ("--weight-decay", "-1")],
)  # fmt: skip
def test_wrong_numbers_are_refused_at_once(option: str, text: str, tmp_path: Path) -> None:
    done = run("train", "-o", tmp_path / "run", f"{option}={text}")
    assert done.returncode == 1 and (text in done.stderr or option in done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_averaged_weights_are_kept(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """An average of every step's weights by hand; also over an interruption."""
    config = dataclasses.replace(CONFIG, ema=0.5, val_data=None)
    learner, wanted = model(tiny), dict[str, torch.Tensor]()

    def average(progress) -> None:  # type: ignore[no-untyped-def]
        for name, value in learner.state_dict().items():
            before = wanted.get(name)
            wanted[name] = value.clone() if before is None else 0.5 * before + 0.5 * value

    best = train(learner, config, tmp_path / "a", on_step=average)
    state, *_ = read_native(best)
    moved = 0
    for name, value in state.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6, msg=name)
        moved += not torch.equal(value, learner.state_dict()[name])
    assert moved > 10

    def stop(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.step == 3:  # after the save at step 2
            raise KeyError

    with pytest.raises(KeyError):
        train(model(tiny), config, tmp_path / "b", on_step=stop)
    resumed = train(model(tiny), config, tmp_path / "b", resume=True)
    for name, value in read_native(resumed)[0].items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
def test_frozen_sam_stays(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    learner = model(tiny)
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    config = dataclasses.replace(CONFIG, freeze_sam=True, adapter_only=True)
    best = train(learner, config, tmp_path)
    changed = {k for k, v in learner.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(
        ".adapter." in k or k.startswith(("audio_adapter.", "audio_prompt.", "mask_decoder."))
        or k == "prompt_encoder.no_mask_embed.weight"
        for k in changed
    )  # fmt: skip
    state, config_of_best, kind = read_native(best)
    with open_safetensors(best) as (_, header):
        assert read_notes(header)["sam"] == sam_fingerprint(before, config_of_best)
    assert kind == "adapter" and not any(k.startswith("image_encoder.patch_embed") for k in state)
    longer = dataclasses.replace(config, steps=config.steps + 2)
    other = model(tiny)
    other.image_encoder.patch_embed.proj.weight.data[0] += 0.5
    with pytest.raises(SaveDeployError, match="trained on the weights of another SAM"):
        train(other, longer, tmp_path, resume=True)
    train(model(tiny), longer, tmp_path, resume=True)


def test_parameters_without_gradient_are_left_alone(tiny) -> None:  # type: ignore[no-untyped-def]
    """Weight decay must not shrink what no loss trains (IoU head, unused hypernetworks)."""
    names = set(trainable_parameters(model(tiny), freeze_sam=False))
    assert not any("iou_prediction_head" in n or "hypernetworks_mlps.2" in n for n in names)
    assert "mask_decoder.output_hypernetworks_mlps.0.layers.0.weight" in names


@pytest.mark.slow
def test_nan_stops_the_run(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken = model(tiny)
    broken.image_encoder.pos_embed.data.fill_(float("nan"))
    with pytest.raises(SaveDeployError, match="diverged"):
        train(broken, CONFIG, tmp_path)


def test_learning_rate() -> None:
    config = dataclasses.replace(CONFIG, steps=100, warmup_steps=10, lr=1.0, final_lr_ratio=0.1)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 9) == learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 55) == pytest.approx(0.55)
    assert learning_rate(config, 100) == pytest.approx(0.1)


@pytest.mark.slow
def test_evaluate_is_deterministic(tiny) -> None:  # type: ignore[no-untyped-def]
    from save_deploy.data.scenes import Scenes

    clips = Scenes(n_clips=2)
    assert evaluate(tiny(), clips) == evaluate(tiny(), clips)


ONE_STEP = dataclasses.replace(CONFIG, steps=1, eval_every=1, save_every=1)


@pytest.mark.slow
def test_a_finished_run_is_not_replaced(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Its weights are of hours: another run there needs force, or resumes."""
    best = train(model(tiny), ONE_STEP, tmp_path)
    before = best.read_bytes()
    other = dataclasses.replace(ONE_STEP, seed=1, lr=1e-2)
    with pytest.raises(OutputError, match=r"best.safetensors, last.pt, curve.jsonl(.|\n)*--force"):
        train(model(tiny), other, tmp_path)
    assert best.read_bytes() == before
    train(model(tiny), other, tmp_path, force=True)
    assert best.read_bytes() != before
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_run_that_cannot_be_written_leaves_nothing(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Under a file, and on a full disk, where safetensors has an error of its own."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the run cannot be written"):
        train(model(tiny), ONE_STEP, tmp_path / "file" / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(OutputError, match="the checkpoint cannot be written"):
            train(model(tiny), ONE_STEP, tmp_path / "deep" / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
