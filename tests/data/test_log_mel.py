"""SPEC 3's worked values, the graph's log-mel, and torch as a second source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from save_deploy.config import SaveConfig
from save_deploy.data import log_mel
from save_deploy.data.log_mel import (
    EXAMPLE_SAMPLES,
    log_mel_examples,
    log_mel_frames,
    mel_filterbank,
)
from save_deploy.export.audio_graph import LogMel
from save_deploy.model.audio_encoder import AudioEncoder

PEER = json.loads(Path(__file__).with_name("torchvggish.json").read_text())  # its numbers


def chirp() -> np.ndarray:
    """Two seconds at 16 kHz that torchvggish itself was given."""
    t = np.arange(32_000) / 16_000
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * t)
    return 0.4 * np.sin(2 * np.pi * (200 + 900 * t) * t) * loudness


def test_examples_are_torchvggishs() -> None:
    got = log_mel_examples(chirp())
    assert got.shape == (2, 1, 96, 64)
    np.testing.assert_allclose(got[:, 0, ::24].reshape(-1, 64), PEER["examples"], atol=2e-5)
    late = log_mel_examples(np.roll(chirp(), 16))  # the twin: a millisecond
    assert np.abs(late[:, 0, ::24].reshape(-1, 64) - PEER["examples"]).max() > 0.1


def test_network_is_torchvggishs() -> None:
    """Its layers and forward, with embeddings 16 wide and weights from a formula, in float64."""
    config = SaveConfig.preset("vit_b", audio_fc=16)
    network = AudioEncoder(config).double().requires_grad_(False)
    for j, (name, like) in enumerate(network.state_dict().items()):
        wave = torch.sin(torch.arange(like.numel(), dtype=torch.float64) ** 1.5 * 0.37 + j)
        scale = (3 / like[0].numel()) ** 0.5 if like.ndim > 1 else 0.1
        network.get_parameter(name).copy_((wave * scale).reshape(like.shape).float())
    examples = torch.from_numpy(np.asarray(log_mel_examples(chirp())[:1], np.float64)) / 4
    expected = torch.tensor(PEER["embedding"], dtype=torch.float64)
    torch.testing.assert_close(network(examples)[0], expected, rtol=0, atol=1e-5)
    by_channel = network.embeddings(network.features(examples).flatten(1))[0]  # the twin
    assert (by_channel - expected).abs().max() > 0.05


def test_filterbank_worked_values() -> None:
    bank = mel_filterbank()
    assert bank.shape == (257, 64)
    assert bank.sum() == pytest.approx(230.9136, abs=1e-4)
    assert np.flatnonzero(bank[:, 0]).tolist() == [5]
    assert bank[5, 0] == pytest.approx(0.947690, abs=1e-6)
    assert not bank[0].any()


@pytest.mark.parametrize(("seconds", "frames", "examples"), [(5, 498, 5), (10, 998, 10)])
def test_shapes(seconds: int, frames: int, examples: int) -> None:
    silence = np.zeros(16_000 * seconds, np.float32)
    assert log_mel_frames(silence).shape == (frames, 64)
    assert log_mel_examples(silence).shape == (examples, 1, 96, 64)


def test_shortest_sound_with_five_examples() -> None:
    assert len(log_mel_examples(np.zeros(round(4.815 * 16_000)))) == 5
    assert len(log_mel_examples(np.zeros(round(4.815 * 16_000) - 1))) == 4
    assert len(log_mel_examples(np.zeros(EXAMPLE_SAMPLES))) == 1


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 96, 198])
def test_products_are_those_of_the_whole(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, each small enough that OpenBLAS wakes no thread (2^18 multiplications)."""
    assert log_mel._PRODUCT_FRAMES * mel_filterbank().size <= 2**18
    sound = chirp()[: 400 + 160 * (frames - 1)]
    found = log_mel_frames(sound)
    monkeypatch.setattr(log_mel, "_PRODUCT_FRAMES", 10_000)
    assert found.shape == (frames, 64)
    np.testing.assert_allclose(found, log_mel_frames(sound), rtol=0, atol=1e-12)


def test_silence() -> None:
    np.testing.assert_allclose(log_mel_examples(np.zeros(16_000)), -4.605170, atol=1e-6)


def test_unit_sine_at_1_khz() -> None:
    sine = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    mean = log_mel_frames(sine).mean(axis=0)
    assert int(mean.argmax()) == 19
    assert mean[19] == pytest.approx(4.81112, abs=1e-5)


def test_magnitude_equals_torch() -> None:
    """An independent transform: torch's frames, window and FFT, float64."""
    wave = np.random.default_rng(0).normal(size=16_000) * 0.1
    window = torch.hann_window(400, periodic=True, dtype=torch.float64)
    frames = torch.from_numpy(wave).unfold(0, 400, 160) * window  # (98,400)
    spectrum = torch.fft.rfft(frames, n=512)
    expected = torch.log(spectrum.abs() @ torch.from_numpy(mel_filterbank()) + 0.01)
    np.testing.assert_allclose(log_mel_frames(wave), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("loudness", [0.0, 1e-3, 1.0])
def test_graph_equals_numpy(loudness: float) -> None:
    """The convolution form in float32 against float64 numpy."""
    wave = (np.random.default_rng(1).normal(size=(2, 16_000)) * 0.2 * loudness).astype(np.float32)
    expected = np.stack([log_mel_examples(w)[0] for w in wave])
    with torch.inference_mode():
        got = LogMel()(torch.from_numpy(wave)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_wrong_hop_is_caught() -> None:
    """Twin: the comparison above notices a front end that differs by one sample."""
    wave = (np.random.default_rng(1).normal(size=(1, 16_000)) * 0.2).astype(np.float32)
    with torch.inference_mode():
        got = LogMel()(torch.from_numpy(np.roll(wave, 1, axis=1))).numpy()
    assert np.abs(got[0] - log_mel_examples(wave[0])[0]).max() > 1e-2
