"""The encoder equals segment-anything's when adapters are off; padding is treated as SAM treats it."""

from __future__ import annotations

import inspect

import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import (
    Attention,
    ImageEncoderViT,
    window_partition,
    window_unpartition,
)

from save_deploy.config import SaveConfig
from save_deploy.model.image_encoder import ImageEncoder, attention_real_tokens
from save_deploy.model.save import PIXEL_MEAN, PIXEL_STD
from tests.conftest import TINY, randomise


def sam_encoder(config: SaveConfig) -> ImageEncoderViT:
    return ImageEncoderViT(
        img_size=config.res,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window_size,
        global_attn_indexes=config.global_blocks,
    )


@pytest.mark.slow
@pytest.mark.parametrize("res", [224, 256])
@pytest.mark.parametrize("window_pad", ["materialise", "exact_skip"])
def test_equals_segment_anything(res: int, window_pad: str) -> None:
    """Same weights, float64, 1e-9; windows of 14 as in SAM."""
    torch.manual_seed(0)
    config = SaveConfig(
        **{**TINY, "res": res, "window_size": 14, "image_adapter": "off", "window_pad": window_pad}
    )
    theirs = randomise(sam_encoder(config)).double().eval()
    ours = ImageEncoder(config).double().eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 3, res, res, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-9)


def test_pixels_are_normalised_as_segment_anything_does() -> None:
    defaults = inspect.signature(Sam.__init__).parameters
    assert defaults["pixel_mean"].default == list(PIXEL_MEAN)
    assert defaults["pixel_std"].default == list(PIXEL_STD)


def attention(side: int) -> Attention:
    torch.manual_seed(1)
    made = Attention(32, 2, use_rel_pos=True, input_size=(side, side))
    return randomise(made).double()


@pytest.mark.parametrize(("grid", "window"), [(16, 14), (14, 14), (16, 0), (5, 3)])
def test_real_tokens_equal_materialised_padding(grid: int, window: int) -> None:
    attn = attention(window or grid)
    x = torch.randn(2, grid, grid, 32, dtype=torch.float64)
    with torch.inference_mode():
        if window:
            windows, pad = window_partition(x, window)
            expected = window_unpartition(attn(windows), window, pad, (grid, grid))
        else:
            expected = attn(x)
        torch.testing.assert_close(
            attention_real_tokens(attn, x, window), expected, rtol=0, atol=1e-9
        )


@pytest.mark.parametrize(("grid", "differs"), [(16, True), (14, False)])
def test_padded_keys_are_seen(grid: int, differs: bool) -> None:
    """SAM attends to padded tokens. Masking them out must change a 16x16 grid, and not a 14x14."""
    attn = attention(14)
    x = torch.randn(1, grid, grid, 32, dtype=torch.float64)
    with torch.inference_mode():
        seen = attention_real_tokens(attn, x, 14)
        masked = masked_attention(attn, x)
    assert bool((seen - masked).abs().max() > 1e-3) == differs


def masked_attention(attn: Attention, x: torch.Tensor) -> torch.Tensor:
    """The deliberately wrong form: padded keys get weight zero (window 14)."""
    windows, pad = window_partition(x, 14)
    real, _ = window_partition(torch.ones_like(x[..., :1]), 14)
    count, heads = windows.shape[0], attn.num_heads
    qkv = attn.qkv(windows).reshape(count, 196, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    from segment_anything.modeling.image_encoder import add_decomposed_rel_pos

    scores = (q * attn.scale) @ k.transpose(-2, -1)
    flat = scores.reshape(count * heads, 196, 196)
    flat = add_decomposed_rel_pos(
        flat, q.reshape(count * heads, 196, -1), attn.rel_pos_h, attn.rel_pos_w, (14, 14), (14, 14)
    )
    hidden = real.reshape(count, 1, 1, 196) == 0
    scores = flat.reshape(scores.shape).masked_fill(hidden, float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, 14, 14, -1)
    return window_unpartition(attn.proj(out), 14, pad, x.shape[1:3])


@pytest.mark.parametrize("inject", ["before", "after"])
@pytest.mark.parametrize("position", ["parallel", "end"])
def test_block_is_equation_1_around_sams_parts(position: str, inject: str) -> None:
    """The adapter's output is added to SAM's block: to what it makes of LN(x_a), or of the block's
    output ("end"). Each audio vector is added to the tokens of its own block."""
    torch.manual_seed(0)
    config = SaveConfig(
        **{**TINY, "res": 224, "window_size": 14, "image_adapter_position": position},
        audio_inject=inject,
    )
    ours = randomise(ImageEncoder(config)).double().eval()
    theirs = sam_encoder(config).double().eval()
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing.missing_keys and all(".adapter." in k for k in missing.unexpected_keys)
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    vectors = torch.randn(config.depth, 1, config.embed_dim, dtype=torch.float64)
    with torch.inference_mode():
        x = theirs.patch_embed(image) + theirs.pos_embed
        for sam, block, vector in zip(theirs.blocks, ours.blocks, vectors, strict=True):
            injected = vector[:, None, None, :]  # (1,C) -> (1,1,1,C)
            x = x + injected if inject == "before" else x
            whole = sam(x)
            seen = sam.norm2(_attended(sam, x)) if position == "parallel" else whole
            x = whole + block.adapter(seen)
            x = x + injected if inject == "after" else x
        expected = theirs.neck(x.permute(0, 3, 1, 2))  # (B,h,w,C) -> (B,C,h,w)
        torch.testing.assert_close(ours(image, vectors), expected, rtol=0, atol=1e-9)


def _attended(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x_a of a SAM block: its output without the MLP."""
    found: list[torch.Tensor] = []
    hook = block.norm2.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0]))
    block(x)
    hook.remove()
    return found[0]
