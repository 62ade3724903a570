"""save_stream without a server: when a second of sound is embedded, and which sequences are kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from save_deploy.errors import DataError
from save_deploy.runtime.triton import stream
from save_deploy.runtime.triton.stream import IDLE_S, Hearing, StreamModel


class Counting:
    """In place of a pipeline: an embedding is the number of the call; the waveforms are kept."""

    def __init__(self) -> None:
        self.waveforms: list[np.ndarray] = []

    def embed(self, waveform: np.ndarray) -> np.ndarray:
        self.waveforms.append(waveform)
        return np.full((1, 128), len(self.waveforms), np.float32)


def test_each_whole_second_is_embedded_once() -> None:
    """Pieces of 0.4 s: the first padded with silence, then the first and the second whole second."""
    pipeline: Any = Counting()
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000).astype(np.float32)
    hearing = Hearing()
    found = [hearing.hear(pipeline, piece)[0, 0] for piece in np.split(sound[:38_400], 6)]
    assert found == [1, 1, 2, 2, 3, 3] and hearing.seconds == 2
    first, *seconds = pipeline.waveforms
    assert np.array_equal(first[:6400], sound[:6400]) and not first[6400:].any()
    assert np.array_equal(np.concatenate(seconds), sound[:32_000])
    assert hearing.n_samples == 6400
    with pytest.raises(DataError, match="too much sound"):
        hearing.hear(pipeline, sound[:16_001])


def test_idle_and_oldest_sequences_go(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(stream, "MAX_SEQUENCES", 3)
    model: Any = StreamModel()
    model.sequences = OrderedDict()
    for name in "ab":
        model._keep(name, Hearing())
    now[0] = 2 * IDLE_S
    model._keep("c", Hearing())
    assert list(model.sequences) == ["a", "b", "c"]
    model._keep("d", Hearing())
    assert list(model.sequences) == ["b", "c", "d"]  # one over the limit
    now[0] += 1
    model._keep("c", model.sequences.pop("c"))
    assert list(model.sequences) == ["d", "c"]  # b was idle for longer than twice IDLE_S
