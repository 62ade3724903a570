"""Sound warm-up: mixtures say what sounds in them, and the encoder learns to hear it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from save_deploy.data.compose import Staging, scene_rng
from save_deploy.data.scenes import actors, draw_n_sources
from save_deploy.errors import SaveDeployError
from save_deploy.training import sound
from save_deploy.training.loop import train
from save_deploy.training.options import TrainConfig
from save_deploy.training.sound import sound_example, warm_up_sound


def test_mixtures_are_labeled_and_repeatable() -> None:
    """0 to 3 sources; the same index always gives the same sound."""
    cast = list(actors())
    drawn = [sound_example(cast, 0, i, 20) for i in range(24)]
    counts = {int(sounding.sum()) for _, sounding in drawn}
    assert counts == {0, 1, 2, 3}
    again = sound_example(cast, 0, 5, 20)
    np.testing.assert_array_equal(drawn[5][0], again[0])
    assert drawn[5][0].shape == (1, 96, 64) and not np.array_equal(drawn[5][0], drawn[6][0])


@pytest.mark.slow
def test_the_encoder_learns(tiny) -> None:  # type: ignore[no-untyped-def]
    """Loss falls by a third in forty steps; the last linear, which the masks read, stays as it was."""
    model = tiny().requires_grad_(True)
    before = model.audio_encoder.embeddings[4].weight.detach().clone()
    losses: list[float] = []
    warm_up_sound(
        model.audio_encoder, nn.Linear(16, 20), list(actors()), steps=40, batch_size=16, lr=3e-3,
        on_step=lambda _, loss: losses.append(loss),
    )  # fmt: skip
    assert np.mean(losses[-5:]) < 0.67 * losses[0]
    assert torch.equal(model.audio_encoder.embeddings[4].weight, before)


class Stop(Exception):
    """End of a run at a step."""


def stop_at(last: int) -> Callable[[int, float], None]:
    def on_step(step: int, _loss: float) -> None:
        if step == last:
            raise Stop

    return on_step


def test_resumed_warm_up_equals_uninterrupted(tiny, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Interrupted between two saves, and between its end and the first save of the run."""
    monkeypatch.setattr(sound, "SAVE_EVERY", 2)
    found = []
    for name, stops in (("straight", ()), ("resumed", (3, 5))):
        torch.manual_seed(0)
        encoder, classes = tiny().requires_grad_(True).audio_encoder, nn.Linear(16, 20)
        fresh = copy.deepcopy((encoder, classes))
        warm_up = partial(
            warm_up_sound, actors=list(actors()), steps=6, batch_size=4, state=tmp_path / name
        )
        for stop in stops:
            with pytest.raises(Stop):
                warm_up(*copy.deepcopy(fresh), resume=True, on_step=stop_at(stop))
        warm_up(encoder, classes, resume=True)
        found.append({**encoder.state_dict(), **classes.state_dict()})
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=1e-6, msg=name)
    with pytest.raises(SaveDeployError, match="cannot be resumed with these options"):
        warm_up(encoder, classes, steps=7, resume=True)
    (tmp_path / "resumed").write_bytes(b"PK")
    with pytest.raises(SaveDeployError, match="cannot be resumed"):
        warm_up(encoder, classes, resume=True)


@pytest.mark.slow
def test_a_run_goes_on_with_its_warm_up(tiny, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The run's own state takes over; a warm-up that was done is not done again."""
    monkeypatch.setattr(sound, "SAVE_EVERY", 2)
    config = TrainConfig(
        data={"scenes": 1.0}, steps=1, sound_steps=4, batch_size=2, aux_weight=0.1, val_data=None
    )
    with pytest.raises(Stop):
        train(tiny(), config, tmp_path, on_sound=stop_at(3))
    heard: list[int] = []
    train(tiny(), config, tmp_path, resume=True, on_sound=lambda step, _: heard.append(step))
    assert heard == [] and not (tmp_path / "hearing.pt").exists()
    assert (tmp_path / "last.pt").is_file()


def test_source_odds() -> None:
    rng = scene_rng(0, "train", 0)
    assert {draw_n_sources(rng, Staging(source_odds=(0, 0, 1))) for _ in range(9)} == {2}
    drawn = [draw_n_sources(rng, Staging(source_odds=(1, 2, 1))) for _ in range(400)]
    assert 0.4 < drawn.count(1) / 400 < 0.6


def test_warm_up_needs_generated_data(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SaveDeployError, match="needs generated data"):
        train(
            tiny(),
            TrainConfig(data={"folder": 1.0}, sound_steps=1, steps=1, aux_weight=0.1),
            tmp_path,
        )
