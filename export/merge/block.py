"""Deploy form of an encoder block, and the proofs of the rewrites inside blocks."""

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
    MacCounter,
    RewriteProof,
    count_parameters,
    in_double,
    relative_difference,
)
from save_deploy.model.image_encoder import Block, attention_as_sam

FULL_GRID = 16  # larger grids: attention is compared on PROOF_HEADS heads
PROOF_HEADS = 2
IN_ATTENTION = ("windows", "scale", "rel_pos")


class DeployBlock(nn.Module):
    """Encoder block with rewritten attention and adapter: (B,s,s,C) -> (B,s,s,C).

    Norms and MLP are the eager modules.
    """

    def __init__(self, block: Block, grid: int, forms: Forms) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.adapter: nn.Module | None = block.adapter
        if block.adapter is not None:
            self.adapter = deploy_adapter(block.adapter, grid, forms)
        self.attn = DeployAttention(block.attn, block.window_size, grid, forms)
        self.position = block.position

    def forward(self, x: Tensor) -> Tensor:
        attended = x + self.attn(self.norm1(x))
        y = self.norm2(attended)
        out = attended + self.mlp(y)
        if self.adapter is None:
            return out
        return out + self.adapter(y if self.position == "parallel" else out)


class _AsSam(nn.Module):
    """SAM's attention with its window padding, as a module: (B,s,s,C) -> (B,s,s,C)."""

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
    """Compare attention and adapter of every block in float64, on random tokens.

    Returns one proof per rewrite, and the largest relative difference of each block with all
    rewrites on. Each rewrite of attention is also compared alone, in the first windowed and first
    global block.
    on_block: called after each block.
    """
    seeded = torch.Generator().manual_seed(0)
    first_of_kind = {bool(block.window_size): i for i, block in reversed(list(enumerate(blocks)))}
    alone = dict.fromkeys(IN_ATTENTION, 0.0)
    adapters, per_block = [0.0], []
    for i, block in enumerate(blocks):
        difference = _attention_difference(block, config, seeded)
        together = difference(forms)
        if i in first_of_kind.values():
            for name in IN_ATTENTION:
                alone[name] = max(alone[name], difference(_only(forms, name)))
        adapters.append(_adapter_difference(block, config, forms, seeded))
        per_block.append(max(together, adapters[-1]))
        on_block()
    part = "" if config.grid <= FULL_GRID else f", {PROOF_HEADS} heads of each (memory)"
    kinds = " and ".join(str(i) for i in sorted(first_of_kind.values()))
    compared = f"alone in blocks {kinds}, with the others in all {config.depth}{part}"
    proofs = [
        _attention_proof(blocks, config, forms, name, alone[name], compared)
        for name in IN_ATTENTION
        if _is_on(forms, name)
    ]
    if any(_is_rewritten(block, config, forms) for block in blocks):
        proofs.append(_adapter_proof(blocks, config, forms, max(adapters)))
    return proofs, tuple(per_block)


def _attention_difference(
    block: Block, config: SaveConfig, seeded: torch.Generator
) -> Callable[[Forms], float]:
    """Return a function forms -> relative difference of DeployAttention from SAM's attention.

    All calls use the same random float64 tokens.
    """
    attn = _attention_in_double(block.attn, config)
    shape = (1, config.grid, config.grid, attn.proj.in_features)
    tokens = torch.randn(shape, generator=seeded, dtype=torch.float64)
    expected = attention_as_sam(attn, tokens, block.window_size)

    def difference(forms: Forms) -> float:
        got = DeployAttention(attn, block.window_size, config.grid, forms)(tokens)
        return relative_difference(expected, got)

    return difference


def _adapter_difference(
    block: Block, config: SaveConfig, forms: Forms, seeded: torch.Generator
) -> float:
    """Return the relative difference of the deploy adapter from the eager one, 0 if unchanged."""
    if block.adapter is None or not _is_rewritten(block, config, forms):
        return 0.0
    eager = in_double(block.adapter)
    shape = (1, config.grid, config.grid, config.embed_dim)
    tokens = torch.randn(shape, generator=seeded, dtype=torch.float64)
    return relative_difference(eager(tokens), deploy_adapter(eager, config.grid, forms)(tokens))


def _only(forms: Forms, name: str) -> Forms:
    """Return the forms with one rewrite of attention on and the others off."""
    return replace(forms.without(*IN_ATTENTION), **{name: getattr(forms, name)})


_KEPT = {
    "windows": "padded keys stay: real tokens attend to them, as in SAM",
    "scale": "LayerNorm affines: the image adapter reads them too",
    "rel_pos": "the sum of both terms: it depends on the query",
}


def _attention_proof(
    blocks: list[Block], config: SaveConfig, forms: Forms, name: str, diff: float, compared: str
) -> RewriteProof:
    only = _only(forms, name)
    macs = _macs_on_tokens(config)
    before = [_AsSam(block.attn, block.window_size) for block in blocks]
    after = (DeployAttention(b.attn, b.window_size, config.grid, only) for b in blocks)
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
        macs_before=sum(map(macs, before)),
        macs_after=sum(map(macs, after)),
        max_rel_diff=diff,
        compared=compared,
    )


def _adapter_proof(
    blocks: list[Block], config: SaveConfig, forms: Forms, diff: float
) -> RewriteProof:
    macs = _macs_on_tokens(config)
    adapters = [block.adapter for block in blocks if block.adapter is not None]
    params_after = macs_after = 0
    for adapter in adapters:  # one at a time: a form may have weights of its own
        deployed = deploy_adapter(adapter, config.grid, forms)
        params_after += count_parameters([deployed])
        macs_after += macs(deployed)
    return RewriteProof(
        name="adapter",
        folded=REWRITES["adapter"],
        kept="gate, skip and norm: nothing constant to fold",
        params_before=count_parameters(adapters),
        params_after=params_after,
        macs_before=sum(map(macs, adapters)),
        macs_after=macs_after,
        max_rel_diff=diff,
        compared=f"all {len(adapters)} adapters",
    )


def _macs_on_tokens(config: SaveConfig) -> MacCounter:
    return MacCounter(torch.empty(1, config.grid, config.grid, config.embed_dim, device="meta"))


def _is_on(forms: Forms, name: str) -> bool:
    return getattr(forms, name) not in (False, "off")


def _is_rewritten(block: Block, config: SaveConfig, forms: Forms) -> bool:
    adapter = block.adapter
    return adapter is not None and deploy_adapter(adapter, config.grid, forms) is not adapter


def _attention_in_double(attn: Attention, config: SaveConfig) -> Attention:
    """Return a float64 copy; for grids above FULL_GRID only the first PROOF_HEADS heads.

    All heads of ViT-H at 1024 px would need 2 GB per score tensor. Heads are independent up to the
    projection, so a few heads prove the algebra.
    """
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
