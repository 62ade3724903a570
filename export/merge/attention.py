"""Rewrite: attention at one grid size, its linears on real tokens only."""

from __future__ import annotations

from typing import cast

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.config import SaveConfig
from save_deploy.export.merge.proof import RewriteProof, in_double, relative_difference
from save_deploy.model.image_encoder import Block, attention_as_sam
from save_deploy.model.save import SaveModel

FULL_GRID = 16  # above it attention is compared on a few heads
PROOF_HEADS = 2


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


def prove_attention(model: SaveModel, merged: nn.ModuleList) -> RewriteProof:
    """Compare every block's attention with SAM's on random tokens, in float64."""
    config, worst = model.config, 0.0
    seeded = torch.Generator().manual_seed(0)
    blocks = [cast(Block, block) for block in model.image_encoder.blocks]
    for block in blocks:
        attn = _in_double(block.attn, config)
        shape = (1, config.grid, config.grid, attn.proj.in_features)
        tokens = torch.randn(shape, generator=seeded, dtype=torch.float64)
        rewritten = DeployAttention(attn, block.window_size, config.grid)
        expected = attention_as_sam(attn, tokens, block.window_size)
        worst = max(worst, relative_difference(expected, rewritten(tokens)))
    part = "" if config.grid <= FULL_GRID else f", {PROOF_HEADS} heads of each (memory)"
    return RewriteProof.of(
        "attention",
        "padded tokens skipped in qkv and proj, query scale in the weights, tables resolved",
        before=[block.attn for block in blocks],
        after=[cast(DeployBlock, block).attn for block in merged],
        max_rel_diff=worst,
        compared=f"all {config.depth} blocks{part}",
    )


def _in_double(attn: Attention, config: SaveConfig) -> Attention:
    """A float64 copy. On grids over FULL_GRID only of the first heads: all of ViT-H's at 1024 px
    would need 2 GB for every score tensor, and heads do not meet before the projection."""
    if config.grid <= FULL_GRID:
        return in_double(attn)
    heads = min(PROOF_HEADS, attn.num_heads)
    dim, kept = config.embed_dim, heads * config.head_dim
    narrow = Attention(kept, heads, use_rel_pos=True, input_size=(1, 1)).double()
    rows = torch.cat([torch.arange(kept) + part * dim for part in range(3)])
    for name, value in {
        "qkv.weight": attn.qkv.weight[rows, :kept],
        "qkv.bias": attn.qkv.bias[rows],
        "proj.weight": attn.proj.weight[:kept, :kept],
        "proj.bias": attn.proj.bias[:kept],
        "rel_pos_h": attn.rel_pos_h,
        "rel_pos_w": attn.rel_pos_w,
    }.items():
        owner = narrow.get_submodule(name.rpartition(".")[0])
        setattr(
            owner,
            name.rpartition(".")[2],
            nn.Parameter(value.detach().double(), requires_grad=False),
        )
    return narrow
