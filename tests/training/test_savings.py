"""What saves memory must not change what is learned, and the estimate must count what is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from save_deploy.config import SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.training.estimate import CARD_BYTES, LiveBytes, estimate_training
from save_deploy.training.loop import train
from save_deploy.training.options import Savings, TrainConfig
from save_deploy.training.parameters import (
    AdamWBf16,
    cast_frozen,
    stochastic_bf16,
    trainable_parameters,
)
from save_deploy.training.start import fresh_model
from save_deploy.training.step import TrainStep
from save_deploy.training.systems_table import scene_batch
from tests.conftest import randomise

ALL = Savings(amp=True, checkpoint_blocks=True, moments="bf16")


def model(tiny, **changes):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return fresh_model(tiny(**changes).config)


def gradients(learner, savings: Savings, parts: int = 1):  # type: ignore[no-untyped-def]
    learner.train()
    learner.zero_grad()
    step = TrainStep(learner, savings=savings)
    for micro in scene_batch(learner.config.res, 4).split(4 // parts):
        (step(micro)[0] / parts).backward()
    return {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


def worst(a, b) -> float:  # type: ignore[no-untyped-def]
    """Largest difference over the largest gradient."""
    assert a.keys() == b.keys()
    top = max(float(g.abs().max()) for g in a.values())
    return max(float((a[n] - b[n]).abs().max()) for n in a) / top


@pytest.mark.slow
def test_checkpointing_and_accumulation_keep_the_gradients(tiny) -> None:  # type: ignore[no-untyped-def]
    # a fresh adapter has values at ReLU's corner, where rounding decides about a whole gradient
    learner = randomise(model(tiny))
    plain = gradients(learner, Savings())
    assert worst(plain, gradients(learner, Savings(checkpoint_blocks=True))) < 1e-5
    assert worst(plain, gradients(learner, Savings(), parts=4)) < 1e-5
    # the twin: without dividing by the parts it would be four times as large
    assert worst(plain, {n: 4 * g for n, g in plain.items()}) > 1


@pytest.mark.slow
def test_mixed_precision_is_close_and_really_on(tiny) -> None:  # type: ignore[no-untyped-def]
    learner = model(tiny)
    plain, mixed = gradients(learner, Savings()), gradients(learner, Savings(amp=True))
    assert 1e-5 < worst(plain, mixed) < 0.1
    assert all(g.dtype == torch.float32 for g in mixed.values())


@pytest.mark.slow
def test_frozen_weights_in_bfloat16(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Only frozen ones, and a run with every saving trains, resumes and saves float32."""
    learner = model(tiny)
    trainable_parameters(learner, freeze_sam=True)
    cast_frozen(learner)
    types = {n: p.dtype for n, p in learner.named_parameters()}
    assert types["image_encoder.blocks.0.attn.qkv.weight"] == torch.bfloat16
    assert types["image_encoder.blocks.0.adapter.norm.weight"] == torch.float32
    assert types["audio_encoder.features.0.weight"] == torch.float32
    config = TrainConfig(
        data={"scenes": 1.0}, n_val_clips=1, steps=2, batch_size=2, warmup_steps=1, eval_every=2,
        save_every=1, freeze_sam=True, adapter_only=True, savings=ALL,
    )  # fmt: skip
    best = train(model(tiny), config, tmp_path)
    from save_deploy.checkpoints.native import read_native

    state, _, kind = read_native(best)
    assert kind == "adapter" and state["image_encoder.blocks.0.adapter.norm.weight"].abs().sum() > 0
    longer = dataclasses.replace(config, steps=3)
    resumed: list[int] = []
    train(model(tiny), longer, tmp_path, resume=True, on_step=lambda p: resumed.append(p.step))
    assert resumed == [3]


def test_stochastic_rounding_keeps_the_mean() -> None:
    """1 + 2^-10 is an eighth of the way between two bfloat16 numbers: nearest always gives 1."""
    torch.manual_seed(0)
    x = torch.full((200_000,), 1 + 2**-10)
    rounded = stochastic_bf16(x.clone()).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0078125}
    assert rounded.mean().item() == pytest.approx(1 + 2**-10, abs=1e-4)
    assert x.to(torch.bfloat16).float().mean().item() == 1.0  # the twin


def test_adamw_with_bfloat16_moments_follows_adamw() -> None:
    """Same problem, same steps: weights within a few percent of the way travelled."""
    torch.manual_seed(0)
    start = torch.randn(64, 64)
    target = torch.randn(64, 64)
    ends = []
    for make in (
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.01),
        lambda p: AdamWBf16(p, lr=1e-2, weight_decay=0.01),
    ):
        weight = nn.Parameter(start.clone())
        optimizer = make([weight])
        for _ in range(60):
            optimizer.zero_grad()
            ((weight - target) ** 2).mean().backward()
            optimizer.step()
        ends.append(weight.detach())
    state = optimizer.state[weight]
    assert state["exp_avg_sq"].dtype == state["exp_avg"].dtype == torch.bfloat16
    travelled = (ends[0] - start).abs().mean()
    assert (ends[0] - ends[1]).abs().mean() < 0.05 * travelled


@pytest.mark.slow
def test_same_seed_same_weights(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = TrainConfig(
        data={"scenes": 1.0}, n_val_clips=1, steps=2, batch_size=2, warmup_steps=1, eval_every=2,
        deterministic=True, savings=Savings(moments="bf16"),
    )  # fmt: skip
    a, b, c = (model(tiny) for _ in range(3))
    train(a, config, tmp_path / "a")
    train(b, config, tmp_path / "b")
    train(c, dataclasses.replace(config, seed=1), tmp_path / "c")
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    other = [torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True)]
    assert all(same) and not all(other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "savings",
    [Savings(), pytest.param(Savings(checkpoint_blocks=True), marks=pytest.mark.thorough)],
)
def test_estimate_equals_a_real_step(tiny, savings: Savings) -> None:  # type: ignore[no-untyped-def]
    """Bytes alive in a real step, counted the same way on real tensors."""
    config = tiny(depth=3, embed_dim=64).config
    found = estimate_training(config, savings, micro_batch=3, freeze_sam=True)
    learner = fresh_model(config)
    learned = trainable_parameters(learner, freeze_sam=True)
    side = config.res
    inputs = (
        torch.zeros(3, side, side, 3, dtype=torch.uint8), torch.rand(3, 128),
        torch.zeros(3, 1, side, side),
    )  # fmt: skip
    step = TrainStep(learner, savings=savings)
    with LiveBytes() as live:
        for _ in range(2):
            step.from_embedding(*inputs).backward()
    trained = sum(4 * p.numel() for p in learned.values())
    assert found.trained == found.gradients == trained
    assert found.moments == 2 * trained
    total = sum(4 * p.numel() for p in learner.parameters())
    assert found.frozen == total - trained
    assert found.activations == pytest.approx(live.peak - trained, rel=0.05)


def test_live_bytes_counts_and_forgets() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        del b
        c = a.view(10, 100)  # no new storage
        assert live.live == 4000
        del a, c
        assert live.live == 0
    assert live.peak == 8000


@pytest.mark.thorough
def test_vit_h_at_1024_fits_a_24_gb_card() -> None:
    """Only with all three savings; each of them alone left out is too much."""
    config = SaveConfig.preset("vit_h", res=1024)

    def total(**changes: object) -> int:
        savings = dataclasses.replace(ALL, **changes)  # type: ignore[arg-type]
        return estimate_training(config, savings, micro_batch=1, freeze_sam=True).total

    assert total() < CARD_BYTES
    assert total(amp=False) > CARD_BYTES
    assert total(checkpoint_blocks=False) > CARD_BYTES
    assert total(moments="fp32") > CARD_BYTES


def test_unknown_moments() -> None:
    with pytest.raises(SaveDeployError, match="fp32, bf16"):
        Savings(moments="int8")
