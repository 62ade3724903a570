"""Limit of the decoder's attention scores, against scores that are computed here from the inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

from save_deploy.errors import SaveDeployError
from save_deploy.training.loop import train
from save_deploy.training.scores import ScoreLimit
from tests.training.test_loop import CONFIG, model

HEADS, LIMIT = 2, 500.0


def largest(attention: Attention, q: Tensor, k: Tensor) -> float:
    """Largest |q k^T| of any head, head by head in float64."""
    q, k = attention.q_proj(q).double(), attention.k_proj(k).double()
    wide = q.shape[2] // HEADS
    parts = [slice(h * wide, (h + 1) * wide) for h in range(HEADS)]
    return max(float((q[..., p] @ k[..., p].mT).abs().max()) for p in parts)


@pytest.fixture
def decoder() -> nn.ModuleList:
    torch.manual_seed(0)
    made = nn.ModuleList([Attention(16, HEADS), Attention(16, HEADS, downsample_rate=2)])
    for parameter in made[0].parameters():
        parameter.data.mul_(30)
    return made


def test_only_scores_above_the_limit_are_scaled(decoder: nn.ModuleList) -> None:
    watched = ScoreLimit(decoder, LIMIT)
    q, k = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    for attention in decoder:
        attention(q, k, k)
    scores = watched.scores()
    with torch.no_grad():
        assert scores == pytest.approx([largest(a, q, k) for a in decoder], rel=1e-4)
    assert scores[0] > LIMIT > scores[1]
    before = [p.clone() for p in decoder[1].parameters()]
    value = [p.clone() for p in decoder[0].v_proj.parameters()]
    watched.apply(scores)
    with torch.no_grad():
        assert largest(decoder[0], q, k) == pytest.approx(LIMIT, rel=1e-4)
    assert all(map(torch.equal, before, decoder[1].parameters()))
    assert all(map(torch.equal, value, decoder[0].v_proj.parameters()))


def test_frozen_attentions_stay(decoder: nn.ModuleList) -> None:
    """Of a system that trains a part of the decoder, or none of it."""
    decoder[0].requires_grad_(False)
    watched = ScoreLimit(decoder, 1e-6)
    q = torch.randn(2, 5, 16)
    for attention in decoder:
        attention(q, q, q)
    before = [p.clone() for p in decoder.parameters()]
    watched.apply(watched.scores())
    same = [torch.equal(a, b) for a, b in zip(before, decoder.parameters(), strict=True)]
    assert all(same[: len(same) // 2]) and not all(same[len(same) // 2 :])
    with pytest.raises(SaveDeployError, match="no attention of the decoder is trained"):
        ScoreLimit(decoder.requires_grad_(False), LIMIT)


@pytest.mark.slow
def test_training_keeps_the_limit(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The same run without the option exceeds it."""
    found = {}
    for limit in (0.0, 1.0):
        learner = model(tiny)
        for name, parameter in learner.mask_decoder.named_parameters():
            if "q_proj.weight" in name:
                parameter.data.mul_(20)
        parts: list[dict[str, float]] = []
        config = dataclasses.replace(CONFIG, score_limit=limit, lr=1e-5, val_data=None)
        train(
            learner,
            config,
            tmp_path / str(limit),
            on_step=lambda p, parts=parts: parts.append(p.extra),
        )
        watched = ScoreLimit(learner.mask_decoder, 1.0)
        side = learner.config.res
        frames, log_mel = torch.zeros(1, 3, side, side), torch.zeros(1, 1, 96, 64)
        with torch.no_grad():
            embeddings, source = learner.encode(frames, learner.audio_encoder(log_mel))
            learner.decode(embeddings, source)
        found[limit] = max(watched.scores())
        assert ("score" in parts[-1]) == bool(limit)
    assert found[0.0] > 2 > found[1.0]
