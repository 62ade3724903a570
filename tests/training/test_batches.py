"""Batches drawn ahead are those drawn between steps; only their time differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from save_deploy.training.batches import Batch, batches
from save_deploy.training.distributed import Team


class Numbers:
    """Samples that are their own number, and note when they are drawn."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        self.drawn.append(index)
        return tuple(np.full(1, index) for _ in range(5))


def numbers(batch: Batch) -> list[int]:
    return batch.frames[:, 0].tolist()


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_the_same_batches(ahead: int, part: tuple[int, int]) -> None:
    """Steps 3 to 6 of 4 samples: 12 to 27, and of two equal parts the second two of each four."""
    samples = Numbers()
    found = batches(
        samples, batch_size=4, first_step=3, last_step=7, part=part, threads=3, ahead=ahead
    )  # type: ignore[arg-type]
    rank, world = part
    expected = [[4 * k + rank * 2 + i for i in range(4 // world)] for k in range(3, 7)]
    assert [numbers(batch) for batch in found] == expected
    assert sorted(samples.drawn) == sorted(n for batch in expected for n in batch)


@pytest.mark.parametrize(("ahead", "most"), [(0, 4), (2, 12)])
def test_no_more_than_asked_is_drawn_before_the_first_step(ahead: int, most: int) -> None:
    samples = Numbers()
    found = batches(samples, batch_size=4, first_step=0, last_step=9, ahead=ahead)  # type: ignore[arg-type]
    assert numbers(next(found)) == [0, 1, 2, 3]
    found.close()  # type: ignore[attr-defined]  # waits for its threads
    assert len(samples.drawn) <= most and set(samples.drawn) <= set(range(most))


def test_cores_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("save_deploy.training.distributed.allowed_cores", lambda: 16)
    team = Team(0, 8, torch.device("cpu"))
    assert team.cores == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # of the eight, four on this machine
    assert team.cores == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert team.cores == 1
