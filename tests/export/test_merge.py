"""Every rewrite equals the eager part in float64, and a wrong rewrite is caught."""

from __future__ import annotations

import pytest
import torch

from save_deploy.config import SaveConfig
from save_deploy.export.merge import DeployModel, merge
from save_deploy.export.merge.attention import DeployAttention, DeployBlock
from save_deploy.export.merge.audio import DeployAudio
from save_deploy.model.image_encoder import Block
from save_deploy.model.save import SaveModel
from tests.conftest import TINY, randomise

SYSTEMS = {
    "default": {},
    "inject before": dict(audio_inject="before"),
    "running sum": dict(audio_mode="literal_running"),
    "recursive": dict(audio_mode="recursive", prompt_source="last"),
    "three layers": dict(audio_layers=3),
    "scaled prompt": dict(prompt_scale="1/N"),
    "prompt on every token": dict(prompt_tokens="hw"),
    "adapter at the end": dict(image_adapter_position="end"),
    "SAVE(*)": dict(image_adapter="off"),
    "SAMA-AVS": dict(
        audio_mode="independent", audio_in_proj=False, audio_share_out=True,
        audio_inject="before", image_adapter="off", prompt_source="off",
    ),
    "AP-SAM": dict(audio_mode="off", audio_inject="none", image_adapter="off", prompt_source="raw"),
    "SAM": dict(audio_mode="off", audio_inject="none", image_adapter="off", prompt_source="off"),
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_deploy_equals_eager(tiny, inputs, name: str) -> None:  # type: ignore[no-untyped-def]
    """Whole model in float32, batch of two, within 1e-4 of the logit range."""
    model = tiny(**SYSTEMS[name])
    deploy, proof = merge(model)
    frames, log_mel = inputs(model, 2)
    with torch.inference_mode():
        expected = model(frames, log_mel)
        got = deploy(frames, model.audio_encoder(log_mel))
    assert proof.exact, proof
    spread = expected.max() - expected.min()
    assert (got - expected).abs().max() <= 1e-4 * spread


@pytest.mark.parametrize("res", [224, 256])
@pytest.mark.parametrize("window", [14, 0])
def test_block_in_float64(res: int, window: int) -> None:
    """SAM's window of 14 on 14x14 and 16x16 grids."""
    block = double_block(res, window)
    x = torch.randn(2, res // 16, res // 16, 32, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(DeployBlock(block, res // 16)(x), block(x), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("window", [14, 0])
def test_block_at_1024_in_float64(window: int) -> None:
    block = double_block(1024, window)
    x = torch.randn(1, 64, 64, 32, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(DeployBlock(block, 64)(x), block(x), rtol=0, atol=1e-9)


def double_block(res: int, window: int) -> Block:
    torch.manual_seed(0)
    config = SaveConfig(**{**TINY, "res": res, "window_size": window or 14})
    block = Block(config, 0 if window else 2)
    return randomise(block).double().eval()


@pytest.mark.parametrize("breakage", ["swapped axes", "masked bias", "no scale"])
def test_a_wrong_rewrite_is_caught(breakage: str) -> None:
    """Twins of test_block_in_float64: each common mistake is far above the tolerance."""
    block = double_block(256, 14)
    deploy = DeployBlock(block, 16)
    attn: DeployAttention = deploy.attn
    if breakage == "swapped axes":
        attn.rel_h, attn.rel_w = attn.rel_w, attn.rel_h
    elif (
        breakage == "masked bias"
    ):  # padded tokens as zeros after qkv: forgets that they are b_k, b_v
        attn.qkv_bias.data.zero_()
    else:
        attn.qkv_weight.data[:32] /= 16**-0.5
    x = torch.randn(1, 16, 16, 32, dtype=torch.float64)
    with torch.inference_mode():
        assert (deploy(x) - block(x)).abs().max() > 1e-3


def test_proof_says_what_is_not_exact(tiny, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A rewrite made wrong on purpose fails its proof, not only a test of ours."""
    original = DeployAudio.forward

    def shifted(self, audio):  # type: ignore[no-untyped-def]
        injections, prompt = original(self, audio)
        return injections.roll(1, dims=0), prompt

    monkeypatch.setattr(DeployAudio, "forward", shifted)
    _, proof = merge(tiny())
    assert not proof.exact
    assert [r.name for r in proof.rewrites if not r.exact] == ["audio"]


def test_proof_counts(tiny) -> None:  # type: ignore[no-untyped-def]
    """Rewrites never copy weights but for the scaled query, and drop what one mask does not need."""
    model = tiny()
    _, proof = merge(model)
    rows = {r.name: r for r in proof.rewrites}
    assert set(rows) == {"normalise", "attention", "decoder", "audio"}
    assert rows["audio"].params_before == rows["audio"].params_after
    assert rows["decoder"].params_after < rows["decoder"].params_before
    assert "all 3 blocks" in rows["attention"].compared


def test_unchanged_weights_are_shared(tiny) -> None:  # type: ignore[no-untyped-def]
    model: SaveModel = tiny()
    deploy = DeployModel(model)
    mine, theirs = deploy.blocks[0].adapter, model.image_encoder.blocks[0].adapter
    assert mine is theirs
    assert deploy.blocks[0].mlp.lin1.weight is model.image_encoder.blocks[0].mlp.lin1.weight
