"""SAM's ViT image encoder with an image adapter and an audio vector in every block.

Modules and parameter names are those of segment-anything (modeling/image_encoder.py). With adapters
off and no audio the output equals its ImageEncoderViT. Tensors inside the encoder are
channels-last.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.image_encoder import (
    Attention,
    PatchEmbed,
    get_rel_pos,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from save_deploy.config import PATCH, PROMPT_DIM, SaveConfig
from save_deploy.model.adapters import AdaptedMlp, ImageAdapter


class ImageEncoder(nn.Module):
    """image (B,3,S,S) normalized, injections (N,B,C) -> image_embeddings (B,256,S/16,S/16)."""

    def __init__(self, config: SaveConfig) -> None:
        super().__init__()
        self.config = config
        self.inject = config.audio_inject
        self.checkpoint_blocks = False  # training: recompute blocks in backward to save memory
        self.patch_embed = PatchEmbed((PATCH, PATCH), (PATCH, PATCH), embed_dim=config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(config.embed_dim, PROMPT_DIM, kernel_size=1, bias=False),
            LayerNorm2d(PROMPT_DIM),
            nn.Conv2d(PROMPT_DIM, PROMPT_DIM, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(PROMPT_DIM),
        )

    def forward(self, image: Tensor, injections: Tensor | None = None) -> Tensor:
        x = self.patch_embed(image) + self.pos_embed  # (B,s,s,C)
        for i, block in enumerate(self.blocks):
            vector = None
            if injections is not None and self.inject != "none":
                vector = injections[i][:, None, None, :]  # (B,1,1,C), broadcast over tokens
            if vector is not None and self.inject == "before":
                x = x + vector
            x = checkpoint(block, x, use_reentrant=False) if self.checkpoint_blocks else block(x)
            if vector is not None and self.inject == "after":
                x = x + vector
        return self.neck(x.permute(0, 3, 1, 2))  # (B,256,s,s)


class Block(nn.Module):
    """Eq. 1: x_a = MHSA(LN(x)) + x; x' = MLP(LN(x_a)) + Adapter(LN(x_a)) + x_a."""

    def __init__(self, config: SaveConfig, index: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.window_size = 0 if index in config.global_blocks else config.window_size
        self.exact_skip = config.window_pad == "exact_skip"
        side = self.window_size or config.grid
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(
            dim, config.num_heads, qkv_bias=True, use_rel_pos=True, input_size=(side, side)
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        kind = config.image_adapter if index >= config.image_adapter_start else "off"
        hidden = dim * config.mlp_ratio
        self.mlp = MLPBlock(dim, hidden)
        if kind == "bottleneck":
            self.mlp = AdaptedMlp(
                dim, hidden, bottleneck=config.bottleneck_dim, adapter_act=nn.ReLU
            )
        self.position = config.image_adapter_position
        self.adapter = ImageAdapter(config) if kind == "med2d" else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block on tokens: (B,s,s,C) -> (B,s,s,C)."""
        attended = x + self._attention(self.norm1(x))
        y = self.norm2(attended)
        out = attended + self.mlp(y)
        if self.adapter is None:
            return out
        if self.position == "parallel":
            return out + self.adapter(y)
        return out + self.adapter(out)

    def _attention(self, x: Tensor) -> Tensor:
        attention = attention_real_tokens if self.exact_skip else attention_as_sam
        return attention(self.attn, x, self.window_size)


def attention_as_sam(attn: Attention, x: Tensor, window_size: int) -> Tensor:
    """Pad to whole windows, attend and crop, as SAM does: (B,s,s,C) -> (B,s,s,C).

    window_size: 0 means global attention.
    """
    if window_size == 0:
        return attn(x)
    windows, pad_hw = window_partition(x, window_size)
    return window_unpartition(attn(windows), window_size, pad_hw, x.shape[1:3])


def attention_real_tokens(attn: Attention, x: Tensor, window_size: int) -> Tensor:
    """Compute SAM's attention with linears only on real tokens: (B,s,s,C) -> (B,s,s,C).

    The result equals attention_as_sam, including padding: a padded token is zero before qkv, so its
    q, k and v are the qkv bias (SPEC 1.2). The product without bias is padded, and the bias is
    added afterwards.
    window_size: 0 means global attention.
    """
    _, height, width, dim = x.shape
    heads, head_dim = attn.num_heads, dim // attn.num_heads
    qkv = nn.functional.linear(x, attn.qkv.weight)  # (B,s,s,3C)
    pad_hw, side = (height, width), height
    if window_size:
        side = window_size
        qkv, pad_hw = window_partition(qkv, window_size)  # (B*nW,w,w,3C)
    qkv = qkv + attn.qkv.bias
    # (B*nW,w*w,3,heads,hd) -> (3,B*nW,heads,w*w,hd)
    q, k, v = qkv.reshape(-1, side * side, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * attn.scale) @ k.transpose(-2, -1)  # (B*nW,heads,w*w,w*w)
    rel_h = get_rel_pos(side, side, attn.rel_pos_h)  # (w,w,hd)
    rel_w = get_rel_pos(side, side, attn.rel_pos_w)
    q_grid = q.reshape(-1, heads, side, side, head_dim)  # (B*nW,heads,w,w,hd)
    bias_h = torch.einsum("bnhwc,hkc->bnhwk", q_grid, rel_h)
    bias_w = torch.einsum("bnhwc,wkc->bnhwk", q_grid, rel_w)
    bias = bias_h[..., :, None] + bias_w[..., None, :]  # (B*nW,heads,w,w,w,w)
    scores = scores + bias.reshape(scores.shape)
    out = scores.softmax(dim=-1) @ v  # (B*nW,heads,w*w,hd)
    out = out.transpose(1, 2).reshape(-1, side, side, dim)  # (B*nW,w,w,C)
    if window_size:
        out = window_unpartition(out, window_size, pad_hw, (height, width))
    return attn.proj(out)
