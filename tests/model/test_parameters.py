"""Parameter counts of SPEC 1.6, to the digit, on the meta device (no memory)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from save_deploy.config import SaveConfig
from save_deploy.model.save import SaveModel
from save_deploy.training.parameters import trainable_parameters

ENCODER = {
    ("vit_b", 1024): 89_670_912, ("vit_l", 1024): 308_278_272, ("vit_h", 1024): 637_026_048,
    ("vit_b", 256): 86_672_640, ("vit_l", 256): 304_296_960, ("vit_h", 256): 632_049_408,
    ("vit_b", 224): 86_624_512, ("vit_l", 224): 304_233_472, ("vit_h", 224): 631_970_048,
}  # fmt: skip
ADAPTERS = {"vit_b": 180_504_576, "vit_l": 641_777_664, "vit_h": 1_337_016_320}
AUDIO = {"vit_b": 9_452_544, "vit_l": 25_202_688, "vit_h": 42_000_384}
IN_PROJ = {"vit_b": 99_072, "vit_l": 132_096, "vit_h": 165_120}
PROMPT = {"vit_b": 262_656, "vit_l": 328_192, "vit_h": 393_728}
TRAINED = {"vit_b": 194_377_444, "vit_l": 671_499_236, "vit_h": 1_383_634_148}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def meta(preset: str, res: int) -> SaveModel:
    with torch.device("meta"):
        return SaveModel(SaveConfig.preset(preset, res=res))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "res"), ENCODER)
def test_image_encoder(preset: str, res: int) -> None:
    encoder = meta(preset, res).image_encoder
    adapters = sum(count(block.adapter) for block in encoder.blocks)
    assert adapters == ADAPTERS[preset]
    assert count(encoder) - adapters == ENCODER[preset, res]


@pytest.mark.slow
@pytest.mark.parametrize("preset", AUDIO)
def test_audio_side_and_decoder(preset: str) -> None:
    model = meta(preset, 256)
    assert count(model.audio_adapter.in_proj) == IN_PROJ[preset]
    assert count(model.audio_adapter) - IN_PROJ[preset] == AUDIO[preset]
    assert count(model.audio_prompt) == PROMPT[preset]
    assert count(model.mask_decoder) == 4_058_340
    assert count(model.prompt_encoder) == 6_220
    assert count(model.audio_encoder) == 72_141_184


@pytest.mark.parametrize("preset", TRAINED)
def test_trainable_total(preset: str) -> None:
    """SPEC counts the whole decoder; we leave its parts without gradient out of the optimizer."""
    model = meta(preset, 256)
    trained = trainable_parameters(model, freeze_sam=True)
    decoder_used = sum(p.numel() for n, p in trained.items() if n.startswith("mask_decoder."))
    total = sum(p.numel() for p in trained.values())
    assert total - decoder_used + count(model.mask_decoder) == TRAINED[preset]
    assert decoder_used == 4_058_340 - 132_612 - 419_424


def test_adapter_formula() -> None:
    """25.5 C^2 + 2C per block."""
    block = meta("vit_t", 256).image_encoder.blocks[0]
    dim = 160
    assert count(block.adapter) == int(25.5 * dim * dim + 2 * dim)
