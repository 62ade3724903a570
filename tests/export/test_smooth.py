"""Smoothing: the same function bit by bit, a smaller error where channels are loud."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from save_deploy.calibration.channels import MAX_ROWS, Channels
from save_deploy.calibration.table import Smoothing
from save_deploy.errors import ExportError
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import Forms
from save_deploy.export.quantize.smooth import (
    apply_smoothing,
    can_smooth,
    choose_smoothing,
    product_error,
)
from tests.conftest import make_tiny

FORMS = Forms().quantizable()


def both_norms(deploy: DeployModel, seed: int = 0) -> dict[str, Smoothing]:
    rng = np.random.default_rng(seed)
    dim = deploy.config.embed_dim
    names = [f"blocks.{i}.norm{k}" for i in range(len(deploy.blocks)) for k in (1, 2)]
    return {n: Smoothing(0.5, tuple(rng.integers(-3, 4, dim))) for n in names}


def frames() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8), torch.rand(2, 128)


@pytest.mark.parametrize(
    "adapter",
    [dict(skip="input"), dict(skip="gated"), dict(skip="none"), dict(position="end")],
    ids=str,
)
def test_same_function(adapter: dict[str, str]) -> None:
    """In float64 to its last digits."""
    model = make_tiny(**{f"image_adapter_{key}": value for key, value in adapter.items()})
    deploy = DeployModel(model, FORMS).eval()
    deploy.double().requires_grad_(False)
    image, sound = frames()
    with torch.inference_mode():
        before = deploy(image, sound.double())
        proof = apply_smoothing(deploy, both_norms(deploy))
        after = deploy(image, sound.double())
    assert proof is not None and proof.exact and proof.max_rel_diff < 1e-13
    assert (after - before).abs().max() < 1e-11 * before.abs().max()


def test_the_eager_model_is_untouched() -> None:
    """Norms, linears and adapters are shared with it until they are rescaled."""
    model = make_tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    deploy = DeployModel(model, FORMS).eval().requires_grad_(False)
    apply_smoothing(deploy, both_norms(deploy))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(
        deploy.blocks[0].norm1.weight, model.image_encoder.blocks[0].norm1.weight
    )


@pytest.mark.parametrize("part", ["gate", "channel", "lin1", "qkv"])
def test_a_part_left_out_is_noticed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin: the proof fails when one of the products a norm feeds is not rescaled."""
    from save_deploy.export.merge.adapter import DeployAdapter
    from save_deploy.export.quantize import smooth

    deploy = DeployModel(make_tiny(), FORMS).eval().requires_grad_(False)
    whole = DeployAdapter.with_scaled_input

    def broken(self: DeployAdapter, scale: torch.Tensor) -> DeployAdapter:
        made = whole(self, scale)
        if part == "gate":
            made.input_scale = None
        elif part == "channel":
            made.channel = self.channel
        return made

    monkeypatch.setattr(DeployAdapter, "with_scaled_input", broken)
    if part == "qkv":
        monkeypatch.setattr(smooth, "MatMul", lambda weight: deploy.blocks[0].attn.qkv)
        monkeypatch.setattr(smooth, "can_smooth", lambda block, norm: True)  # asks for its type
    smoothing = both_norms(deploy)
    if part == "lin1":
        proof_of = smooth._difference
        monkeypatch.setattr(
            smooth, "_difference", lambda b, a, x: proof_of(b, (a[0], b[1]), x)
        )  # fmt: skip
    proof = apply_smoothing(deploy, smoothing)
    assert proof is not None and not proof.exact


def loud(seed: int = 0, dim: int = 48) -> tuple[Channels, np.ndarray]:
    """Rows with two channels fifty times louder than the others."""
    rng = np.random.default_rng(seed)
    channels = Channels("x", 8)
    factor = np.ones(dim, np.float32)
    factor[[3, 17]] = 50
    for _ in range(8):
        channels.add(rng.normal(size=(40, dim)).astype(np.float32) * factor)
    return channels, rng.normal(size=(dim, 24)).astype(np.float32) / factor[:, None]


def test_loud_channels_are_taken_down() -> None:
    channels, weight = loud()
    plain = product_error(channels.rows, weight, float(channels.amax.max()))
    found = choose_smoothing(channels, weight)
    assert found is not None
    scale = found.scale
    assert scale[3] > 4 * np.median(scale) and (scale == np.exp2(np.rint(np.log2(scale)))).all()
    smoothed = product_error(
        channels.rows / scale, weight * scale[:, None], float((channels.amax / scale).max())
    )
    assert smoothed < plain / 10
    # against float64 and ONNX's rule, written out
    step = np.float64(channels.amax.max() / 127)
    rounded = np.clip(np.rint(channels.rows / step), -127, 127) * step
    steps = np.abs(weight).max(0) / 127
    expected = rounded @ (np.rint(weight / steps) * steps) - channels.rows.astype(float) @ weight
    assert plain == pytest.approx(np.square(expected).mean(), rel=0.05)


def test_quiet_channels_are_left_alone() -> None:
    rng = np.random.default_rng(1)
    channels = Channels("x", 4)
    for _ in range(4):
        channels.add(np.clip(rng.normal(size=(64, 32)), -3, 3).astype(np.float32))
    weight = np.clip(rng.normal(size=(32, 16)), -2, 2).astype(np.float32)
    found = choose_smoothing(channels, weight)
    assert found is None or product_error(
        channels.rows / found.scale, weight * found.scale[:, None],
        float((channels.amax / found.scale).max()),
    ) < product_error(channels.rows, weight, float(channels.amax.max()))  # fmt: skip


def test_dead_channels_keep_their_scale() -> None:
    channels, weight = loud()
    channels.amax[5], weight[7] = 0, 0
    found = choose_smoothing(channels, weight)
    assert found is not None and found.exponents[5] == found.exponents[7] == 0


def test_smoothing_of_another_model() -> None:
    deploy = DeployModel(make_tiny(), FORMS).eval().requires_grad_(False)
    with pytest.raises(ExportError, match=r"blocks\.99\.norm1"):
        apply_smoothing(deploy, {"blocks.99.norm1": Smoothing(0.5, (0,) * 8)})
    with pytest.raises(ExportError, match="channels"):
        apply_smoothing(deploy, {"blocks.0.norm1": Smoothing(0.5, (0,) * 8)})
    assert apply_smoothing(deploy, {}) is None


def test_an_eager_adapter_is_not_smoothed() -> None:
    deploy = DeployModel(make_tiny(), replace(FORMS, adapter="off")).eval()
    assert can_smooth(deploy.blocks[0], "norm1") and not can_smooth(deploy.blocks[0], "norm2")
    before = deploy.blocks[0].norm2
    with pytest.raises(ExportError, match=r"another form of the graph(.|\n)*blocks\.0\.norm2"):
        apply_smoothing(deploy, {"blocks.0.norm2": Smoothing(0.5, (1,) * deploy.config.embed_dim)})
    assert deploy.blocks[0].norm2 is before


def test_channels_against_numpy() -> None:
    rng = np.random.default_rng(2)
    parts = [rng.normal(size=(2, 30, 12)).astype(np.float32) for _ in range(5)]
    channels = Channels("x", 5)
    for part in parts:
        channels.add(part)
    flat = np.concatenate([p.reshape(-1, 12) for p in parts])
    assert (channels.amax == np.abs(flat).max(0)).all()
    np.testing.assert_allclose(channels.mean, flat.mean(0), atol=1e-7)
    assert len(channels.rows) <= MAX_ROWS
    known = {row.tobytes() for row in flat}
    assert all(row.tobytes() in known for row in channels.rows)
