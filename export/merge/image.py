"""Rewrites of the image encoder: normalisation into the patch embedding, attention on real tokens."""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.config import PATCH
from save_deploy.model.image_encoder import Block


class DeployPatchEmbed(nn.Module):
    """(x - mean) / std folded into the convolution; positions added as a constant.

    frames uint8 (B,S,S,3) -> (B,s,s,C). conv((x - m) / d) = conv'(x) + b' with w' = w / d and
    b' = b - sum(w' m); exact because the patches have no padding.
    """

    def __init__(self, conv: nn.Conv2d, pos_embed: nn.Parameter, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        weight = conv.weight.double() / std.double().view(1, 3, 1, 1)
        assert conv.bias is not None
        bias = conv.bias.double() - (weight * mean.double().view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
        self.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        self.pos_embed = pos_embed

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.to(self.weight.dtype).permute(0, 3, 1, 2)  # (B,3,S,S)
        x = F.conv2d(x, self.weight, self.bias, stride=PATCH)  # (B,C,s,s)
        return x.permute(0, 2, 3, 1) + self.pos_embed  # (B,s,s,C)


class DeployAttention(nn.Module):
    """SAM's attention at one grid size, linears on real tokens only ("late pad").

    A padded token is zero before qkv, so its q, k and v are the qkv bias: the product without bias
    is padded, partitioned, then the bias is added (SPEC 1.2). The query scale sits in the q weights,
    and in 1/scale on the relative tables, which read the unscaled query.
    """

    def __init__(self, attn: Attention, window_size: int, grid: int) -> None:
        super().__init__()
        self.num_heads, self.grid = attn.num_heads, grid
        self.side = window_size or grid
        self.n_windows = -(-grid // self.side)  # per axis
        dim = attn.proj.in_features
        scale = torch.ones(3 * dim, dtype=attn.qkv.weight.dtype)
        scale[:dim] = attn.scale
        self.qkv_weight = nn.Parameter(attn.qkv.weight * scale[:, None], requires_grad=False)
        self.qkv_bias = nn.Parameter(attn.qkv.bias * scale, requires_grad=False)
        # (side,hd,side): row h of queries against all rows k of keys
        rel_h = get_rel_pos(self.side, self.side, attn.rel_pos_h) / attn.scale
        rel_w = get_rel_pos(self.side, self.side, attn.rel_pos_w) / attn.scale
        self.rel_h = nn.Parameter(rel_h.transpose(1, 2).contiguous(), requires_grad=False)
        self.rel_w = nn.Parameter(rel_w.transpose(1, 2).contiguous(), requires_grad=False)
        self.proj = attn.proj

    def forward(self, x: Tensor) -> Tensor:
        """(B,s,s,C) -> (B,s,s,C)."""
        batch, dim = x.shape[0], x.shape[3]
        heads, side, n = self.num_heads, self.side, self.n_windows
        head_dim, length = dim // heads, side * side
        qkv = F.linear(x, self.qkv_weight)  # (B,s,s,3C)
        if n > 1:
            pad = n * side - self.grid
            qkv = F.pad(qkv, (0, 0, 0, pad, 0, pad))  # (B,n*w,n*w,3C)
            qkv = qkv.reshape(batch, n, side, n, side, 3 * dim).permute(0, 1, 3, 2, 4, 5)
        qkv = qkv + self.qkv_bias
        # (B*n*n,L,3,heads,hd) -> 3 x (B*n*n,heads,L,hd)
        q, k, v = qkv.reshape(-1, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) + self._rel_pos(q)  # (B*n*n,heads,L,L)
        out = scores.softmax(dim=-1) @ v
        out = out.transpose(1, 2).reshape(-1, side, side, dim)  # (B*n*n,w,w,C)
        if n > 1:
            out = out.reshape(batch, n, n, side, side, dim).permute(0, 1, 3, 2, 4, 5)
            out = out.reshape(batch, n * side, n * side, dim)[:, : self.grid, : self.grid]
        return self.proj(out)

    def _rel_pos(self, q: Tensor) -> Tensor:
        """q (B',heads,L,hd), scaled -> additive bias (B',heads,L,L).

        One product per query row (column) with the tables not broadcast over batch and heads, which
        compilers otherwise copy (TensorRT adds two kernels a block).
        """
        side = self.side
        count, heads, length, head_dim = q.shape
        grid = q.reshape(count * heads, side, side, head_dim)  # (B'h,h,w,hd)
        rows = grid.transpose(0, 1).reshape(side, -1, head_dim) @ self.rel_h  # (h,B'h*w,k)
        rows = rows.reshape(side, -1, side, side).transpose(0, 1)  # (B'h,h,w,k)
        cols = grid.permute(2, 0, 1, 3).reshape(side, -1, head_dim) @ self.rel_w  # (w,B'h*h,k)
        cols = cols.reshape(side, -1, side, side).permute(1, 2, 0, 3)  # (B'h,h,w,k)
        bias = rows[..., :, None] + cols[..., None, :]  # (B'h,h,w,k,k)
        return bias.reshape(count, heads, length, length)


class DeployBlock(nn.Module):
    """An encoder block with its attention rewritten; norms, MLP and adapter are the eager ones."""

    def __init__(self, block: Block, grid: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp, self.adapter = (
            block.norm1,
            block.norm2,
            block.mlp,
            block.adapter,
        )
        self.attn = DeployAttention(block.attn, block.window_size, grid)
        self.position = block.position

    def forward(self, x: Tensor) -> Tensor:
        """(B,s,s,C) -> (B,s,s,C)."""
        attended = x + self.attn(self.norm1(x))
        y = self.norm2(attended)
        out = attended + self.mlp(y)
        if self.adapter is None:
            return out
        return out + self.adapter(y if self.position == "parallel" else out)


class DeployNeck(nn.Module):
    """SAM's neck with its hand-written LayerNorm2d as real LayerNorms, channels last.

    The decoder's constant dense prompt (no_mask_embed) is added in the last norm's bias.
    (B,s,s,C) -> (B,s*s,256).
    """

    def __init__(self, neck: nn.Sequential, dense_prompt: Tensor) -> None:
        super().__init__()
        parts: list[Any] = list(neck)
        conv1, norm1, conv2, norm2 = parts
        self.weight1 = nn.Parameter(conv1.weight.flatten(1), requires_grad=False)  # (256,C)
        self.norm1 = _layer_norm(norm1.weight, norm1.bias, norm1.eps)
        self.conv2 = conv2
        self.norm2 = _layer_norm(norm2.weight, norm2.bias + dense_prompt, norm2.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(F.linear(x, self.weight1))
        x = self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B,s,s,256)
        return self.norm2(x).flatten(1, 2)


def _layer_norm(weight: Tensor, bias: Tensor, eps: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(weight.shape[0], eps=eps, device="meta")
    norm.weight = nn.Parameter(weight.detach(), requires_grad=False)
    norm.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return norm
