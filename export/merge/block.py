"""An encoder block in its deploy form, and the proofs of the rewrites that happen inside blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

from save_deploy.config import SaveConfig
from save_deploy.export.merge.adapter import deploy_adapter
from save_deploy.export.merge.attention import DeployAttention
from save_deploy.export.merge.forms import REWRITES, Forms
from save_deploy.export.merge.proof import (
    RewriteProof,
    count_macs,
    count_parameters,
    in_double,
    relative_difference,
)
from save_deploy.model.image_encoder import Block, attention_as_sam

FULL_GRID = 16  # above it attention is compared on a few heads
PROOF_HEADS = 2
IN_ATTENTION = ("windows", "scale", "rel_pos")


class DeployBlock(nn.Module):
    """An encoder block with attention and adapter rewritten; norms and MLP are the eager ones."""

    def __init__(self, block: Block, grid: int, forms: Forms) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.adapter: nn.Module | None = block.adapter
        if block.adapter is not None:
            self.adapter = deploy_adapter(block.adapter, grid, forms)
        self.attn = DeployAttention(block.attn, block.window_size, grid, forms)
        self.position = block.position

    def forward(self, x: Tensor) -> Tensor:
        """(B,s,s,C) -> (B,s,s,C)."""
        attended = x + self.attn(self.norm1(x))
        y = self.norm2(attended)
        out = attended + self.mlp(y)
        if self.adapter is None:
            return out
        return out + self.adapter(y if self.position == "parallel" else out)


class _AsSam(nn.Module):
    """SAM's own attention with its padding, as a module."""

    def __init__(self, attn: Attention, window_size: int) -> None:
        super().__init__()
        self.attn, self.window_size = attn, window_size

    def forward(self, x: Tensor) -> Tensor:
        return attention_as_sam(self.attn, x, self.window_size)


def prove_blocks(
    blocks: list[Block],
    config: SaveConfig,
    forms: Forms,
    on_block: Callable[[], object] = lambda: None,
) -> tuple[list[RewriteProof], tuple[float, ...]]:
    """-> one proof per rewrite inside blocks, and the worst difference of every block with all of them.

    Each rewrite is compared alone in the first block of each kind, all together in every block.
    """
    seeded = torch.Generator().manual_seed(0)
    shape = (1, config.grid, config.grid)
    first_of_kind = {bool(block.window_size): i for i, block in reversed(list(enumerate(blocks)))}
    alone = dict.fromkeys(IN_ATTENTION, 0.0)
    adapter_diffs, per_block = [0.0], []
    for i, block in enumerate(blocks):
        attn = _attention_in_double(block.attn, config)
        tokens = torch.randn(*shape, attn.proj.in_features, generator=seeded, dtype=torch.float64)
        expected = attention_as_sam(attn, tokens, block.window_size)

        def difference(chosen: Forms) -> float:
            got = DeployAttention(attn, block.window_size, config.grid, chosen)(tokens)  # noqa: B023
            return relative_difference(expected, got)  # noqa: B023

        worst = difference(forms)
        if i in first_of_kind.values():
            for name in IN_ATTENTION:
                only = replace(forms.without(*IN_ATTENTION), **{name: getattr(forms, name)})
                alone[name] = max(alone[name], difference(only))
        if block.adapter is not None and _is_rewritten(block, config, forms):
            eager = in_double(block.adapter)
            tokens = torch.randn(*shape, config.embed_dim, generator=seeded, dtype=torch.float64)
            rewritten = deploy_adapter(eager, config.grid, forms)
            adapter_diffs.append(relative_difference(eager(tokens), rewritten(tokens)))
        per_block.append(max(worst, adapter_diffs[-1]))
        on_block()
    proofs = []
    part = "" if config.grid <= FULL_GRID else f", {PROOF_HEADS} heads of each (memory)"
    kinds = " and ".join(str(i) for i in sorted(first_of_kind.values()))
    for name in IN_ATTENTION:
        if not _is_on(forms, name):
            continue
        only = replace(forms.without(*IN_ATTENTION), **{name: getattr(forms, name)})
        proofs.append(
            _attention_proof(
                blocks, config, name, only, alone[name],
                f"alone in blocks {kinds}, with the others in all {config.depth}{part}",
            )
        )  # fmt: skip
    if any(_is_rewritten(block, config, forms) for block in blocks):
        proofs.append(_adapter_proof(blocks, config, forms, max(adapter_diffs)))
    return proofs, tuple(per_block)


_KEPT = {
    "windows": "padded keys stay: real tokens attend to them, as in SAM",
    "scale": "LayerNorm affines: the image adapter needs them back",
    "rel_pos": "the sum of both terms: it depends on the query",
}


def _attention_proof(
    blocks: list[Block], config: SaveConfig, name: str, only: Forms, diff: float, compared: str
) -> RewriteProof:
    tokens = torch.empty(1, config.grid, config.grid, config.embed_dim, device="meta")
    before = [_AsSam(block.attn, block.window_size) for block in blocks]
    macs_after = sum(
        count_macs(DeployAttention(b.attn, b.window_size, config.grid, only), tokens)
        for b in blocks
    )
    n_params = count_parameters([block.attn for block in blocks])
    table_growth = sum(
        2 * (block.window_size or config.grid) ** 2 * config.head_dim
        - block.attn.rel_pos_h.numel()
        - block.attn.rel_pos_w.numel()
        for block in blocks
    )
    return RewriteProof(
        name=name,
        folded=REWRITES[name],
        kept=_KEPT[name],
        params_before=n_params,
        params_after=n_params + (table_growth if name == "rel_pos" else 0),
        macs_before=sum(count_macs(module, tokens) for module in before),
        macs_after=macs_after,
        max_rel_diff=diff,
        compared=compared,
    )


def _adapter_proof(
    blocks: list[Block], config: SaveConfig, forms: Forms, diff: float
) -> RewriteProof:
    tokens = torch.empty(1, config.grid, config.grid, config.embed_dim, device="meta")
    adapters = [block.adapter for block in blocks if block.adapter is not None]
    n_params = count_parameters(adapters)
    return RewriteProof(
        name="adapter",
        folded=REWRITES["adapter"],
        kept="gate, skip and norm: nothing constant to fold",
        params_before=n_params,
        params_after=n_params,
        macs_before=sum(count_macs(a, tokens) for a in adapters),
        macs_after=sum(count_macs(deploy_adapter(a, config.grid, forms), tokens) for a in adapters),
        max_rel_diff=diff,
        compared=f"all {len(adapters)} adapters",
    )


def _is_on(forms: Forms, name: str) -> bool:
    return getattr(forms, name) not in (False, "off")


def _is_rewritten(block: Block, config: SaveConfig, forms: Forms) -> bool:
    adapter = block.adapter
    return adapter is not None and deploy_adapter(adapter, config.grid, forms) is not adapter


def _attention_in_double(attn: Attention, config: SaveConfig) -> Attention:
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
        weight = nn.Parameter(value.detach().double(), requires_grad=False)
        setattr(owner, name.rpartition(".")[2], weight)
    return cast(Attention, narrow)
