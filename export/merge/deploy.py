"""merge: SaveModel -> DeployModel, one resolution, inference only, and the proof that it is equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

from save_deploy.config import AUDIO_DIM, PROMPT_DIM, SaveConfig
from save_deploy.export.merge.audio import DeployAudio, DeployPrompt
from save_deploy.export.merge.decoder import DeployDecoder
from save_deploy.export.merge.image import (
    DeployAttention,
    DeployBlock,
    DeployNeck,
    DeployPatchEmbed,
)
from save_deploy.export.merge.proof import (
    MergeProof,
    RewriteProof,
    count_parameters,
    in_double,
    relative_difference,
)
from save_deploy.model.image_encoder import Block, attention_as_sam
from save_deploy.model.save import SaveModel, decode_masks

FULL_GRID = 16  # above it attention is compared on a few heads
PROOF_HEADS = 2


class DeployModel(nn.Module):
    """frames uint8 (B,S,S,3) RGB + audio_embedding float32 (B,128) -> mask_logits (B,1,S,S)."""

    def __init__(self, model: SaveModel) -> None:
        super().__init__()
        config = self.config = model.config
        encoder = model.image_encoder
        self.inject = config.audio_inject
        self.patch_embed = DeployPatchEmbed(
            encoder.patch_embed.proj, encoder.pos_embed, model.pixel_mean, model.pixel_std
        )
        self.blocks = nn.ModuleList(
            DeployBlock(cast(Block, block), config.grid) for block in encoder.blocks
        )
        self.neck = DeployNeck(encoder.neck, model.prompt_encoder.no_mask_embed.weight[0])
        batched = config.audio_mode in ("literal", "literal_running", "independent")
        self.audio_adapter = DeployAudio(model.audio_adapter) if batched else model.audio_adapter
        self.audio_prompt = None if model.audio_prompt is None else DeployPrompt(model.audio_prompt)
        image_pe = model.prompt_encoder.get_dense_pe().to(encoder.pos_embed.dtype)
        self.mask_decoder = DeployDecoder(model.mask_decoder, image_pe)

    def forward(self, image: Tensor, audio_embedding: Tensor) -> Tensor:
        injections, prompt_source = self.audio_adapter(audio_embedding)
        x = self.patch_embed(image)
        for i, block in enumerate(self.blocks):
            if self.inject == "before":
                x = x + injections[i][:, None, None, :]
            x = block(x)
            if self.inject == "after":
                x = x + injections[i][:, None, None, :]
        if self.audio_prompt is None:
            sparse = x.new_zeros(x.shape[0], 0, PROMPT_DIM)
        else:
            sparse = self.audio_prompt(prompt_source)
        low_res_masks = self.mask_decoder(self.neck(x), sparse)
        size = (self.config.res, self.config.res)
        return nn.functional.interpolate(low_res_masks, size, mode="bilinear", align_corners=False)


def merge(
    model: SaveModel, *, on_part: Callable[[str], None] = lambda _: None
) -> tuple[DeployModel, MergeProof]:
    """Merge an eager model in eval mode; the deploy model shares its weights where unchanged.

    Every part that was rewritten is compared with its eager original in float64 on seeded inputs.
    """
    deploy = DeployModel(model).eval().requires_grad_(False)
    return deploy, MergeProof(tuple(_proofs(model, deploy, on_part)))


def _proofs(
    model: SaveModel, deploy: DeployModel, on_part: Callable[[str], None]
) -> list[RewriteProof]:
    config, encoder = model.config, model.image_encoder
    seeded = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=seeded, dtype=torch.float64)
    proofs = []

    def add(
        name: str, folded: str, before: list[Any], after: list[Any], diff: float, compared: str
    ) -> None:
        proofs.append(
            RewriteProof(
                name, folded, count_parameters(*before), count_parameters(*after), diff, compared
            )
        )
        on_part(name)

    frames = torch.randint(
        0, 256, (1, config.res, config.res, 3), generator=seeded, dtype=torch.uint8
    )
    reference = _Embed(model)
    # the fold is made in float32; proving the algebra needs it made again in float64
    double_embed = DeployPatchEmbed(
        in_double(encoder.patch_embed.proj),
        nn.Parameter(encoder.pos_embed.double()),
        model.pixel_mean,
        model.pixel_std,
    )
    add(
        "normalise",
        "mean and std in the patch convolution, positions as a constant; takes uint8 NHWC",
        [encoder.patch_embed, _Bag(encoder.pos_embed)],
        [deploy.patch_embed],
        relative_difference(reference, double_embed, frames),
        "patch embedding",
    )
    worst = 0.0
    for i, block in enumerate(encoder.blocks):
        # rebuilt from a float64 copy, so that only the algebra is compared
        eager = cast(Block, block)
        attn, window = _attention_in_double(eager.attn, config), eager.window_size
        tokens = normal(1, config.grid, config.grid, attn.proj.in_features)
        with torch.inference_mode():
            expected = attention_as_sam(attn, tokens, window)
            got = DeployAttention(attn, window, config.grid)(tokens)
        worst = max(worst, float((expected - got).abs().max() / expected.abs().max()))
        on_part(f"block {i}")
    add(
        "attention",
        "padded tokens skipped in qkv and proj, query scale in the weights, relative tables resolved",
        [b.attn for b in encoder.blocks],
        [b.attn for b in deploy.blocks],
        worst,
        f"all {config.depth} blocks"
        + ("" if config.grid <= FULL_GRID else f", {PROOF_HEADS} heads of each (memory)"),
    )
    image_embeddings = normal(1, config.embed_dim, config.grid, config.grid)
    source = normal(1, _source_dim(config))
    head = _Head(model)
    add(
        "decoder",
        "one mask of four, no IoU head, constant positions and dense prompt, upscaling as linears",
        [encoder.neck, model.mask_decoder, model.prompt_encoder],
        [deploy.neck, deploy.mask_decoder],
        relative_difference(head, _DeployHead(in_double(head)), image_embeddings, source),
        "neck and decoder",
    )
    audio = normal(2, AUDIO_DIM).abs()
    if isinstance(deploy.audio_adapter, DeployAudio):
        double = in_double(model.audio_adapter)
        with torch.inference_mode():
            expected, got = (
                torch.cat([*double(audio)[0]]),
                torch.cat([*DeployAudio(double)(audio)[0]]),
            )
        add(
            "audio",
            "all audio adapters as batched products",
            [model.audio_adapter],
            [deploy.audio_adapter],
            float((expected - got).abs().max() / expected.abs().max()),
            "all injection vectors",
        )
    return proofs


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
        setattr(
            owner,
            name.rpartition(".")[2],
            nn.Parameter(value.detach().double(), requires_grad=False),
        )
    return narrow


def _source_dim(config: SaveConfig) -> int:
    return (
        AUDIO_DIM
        if config.prompt_source == "raw" or config.audio_mode == "off"
        else config.embed_dim
    )


class _Bag(nn.Module):
    """Holds one parameter, to be counted."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.parameter = parameter


class _Embed(nn.Module):
    """Eager normalisation, patch embedding and positions."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: SaveModel) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = (
            model.image_encoder.patch_embed,
            model.image_encoder.pos_embed,
        )
        self.register_buffer("mean", model.pixel_mean)
        self.register_buffer("std", model.pixel_std)

    def forward(self, frames: Tensor) -> Tensor:
        image = (frames.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        return self.patch_embed(image) + self.pos_embed


class _Head(nn.Module):
    """Eager neck and decoder: (B,C,s,s), prompt source -> low_res_masks (B,1,4s,4s)."""

    def __init__(self, model: SaveModel) -> None:
        super().__init__()
        self.neck, self.audio_prompt = model.image_encoder.neck, model.audio_prompt
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder

    def double(self) -> _Head:
        super().double()
        self.prompt_encoder.pe_layer.float()  # segment-anything builds its grid in float32
        return self

    def forward(self, features: Tensor, source: Tensor) -> Tensor:
        masks, _ = decode_masks(
            self.audio_prompt, self.prompt_encoder, self.mask_decoder, self.neck(features), source
        )
        return masks[:, :1]


class _DeployHead(nn.Module):
    """The same through the rewritten parts, built from the same float64 weights."""

    def __init__(self, head: _Head) -> None:
        super().__init__()
        self.neck = DeployNeck(head.neck, head.prompt_encoder.no_mask_embed.weight[0])
        image_pe = head.prompt_encoder.get_dense_pe().double()
        self.decoder = DeployDecoder(head.mask_decoder, image_pe)
        self.prompt = None if head.audio_prompt is None else DeployPrompt(head.audio_prompt)

    def forward(self, features: Tensor, source: Tensor) -> Tensor:
        tokens = self.neck(features.permute(0, 2, 3, 1))
        sparse = (
            tokens.new_zeros(tokens.shape[0], 0, PROMPT_DIM)
            if self.prompt is None
            else self.prompt(source)
        )
        return self.decoder(tokens, sparse)
