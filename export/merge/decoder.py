"""Rewrite: neck and mask decoder for one mask, constants folded, upscaling as linears."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.config import AUDIO_DIM, PROMPT_DIM
from save_deploy.export.merge.audio import DeployPrompt
from save_deploy.export.merge.forms import REWRITES
from save_deploy.export.merge.proof import (
    RewriteProof,
    count_macs,
    count_parameters,
    in_double,
    relative_difference,
)
from save_deploy.export.merge.transformer import DeployTransformer, JoinedTransformer
from save_deploy.model.adapters import PostFusion
from save_deploy.model.mask_decoder import MaskDecoder
from save_deploy.model.save import SaveModel, decode_masks

MASK_TOKEN = 1  # behind the IoU token


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


class DeployFusion(nn.Module):
    """Post-fusion on tokens that already hold the dense prompt, which the mean must not see."""

    def __init__(self, fusion: PostFusion, dense_prompt: Tensor) -> None:
        super().__init__()
        self.proj = fusion.proj
        self.dense_prompt = nn.Parameter(dense_prompt.detach(), requires_grad=False)

    def forward(self, tokens: Tensor, audio_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B,T,256), (B,128) -> fused tokens, prompt source (B,256)."""
        fused = tokens + self.proj(audio_embedding)[:, None, :]
        return fused, fused.mean(dim=1) - self.dense_prompt


class DeployDecoder(nn.Module):
    """Mask 0 of SAM's decoder (multimask_output=False).

    Dropped: the hypernetworks and products of the three other masks, the IoU head. Kept: their
    tokens, which mask 0 attends to. Constant: the positional grid and the output tokens. The
    transposed convolutions (kernel 2, stride 2) are linears on tokens, so LayerNorm2d becomes a
    LayerNorm over the last axis and only the finished one-channel mask changes layout. joined: see
    transformer.py; the mask is then a weighted sum, which TensorRT computes where the values are made.
    """

    def __init__(self, decoder: MaskDecoder, image_pe: Tensor, *, joined: bool = False) -> None:
        super().__init__()
        self.grid, self.joined = image_pe.shape[-1], joined
        positions = image_pe.flatten(2).permute(0, 2, 1).contiguous()  # (1,T,256)
        self.transformer: nn.Module
        if joined:
            self.transformer = JoinedTransformer(decoder.transformer, positions, MASK_TOKEN)
        else:
            self.transformer = DeployTransformer(decoder.transformer, positions)
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
        self.output_tokens = nn.Parameter(tokens, requires_grad=False)  # (1,5,256)
        up1, norm, self.act, up2, _ = decoder.output_upscaling
        self.up1 = _linear_from_transposed_conv(up1)
        self.norm = _layer_norm(norm.weight, norm.bias, norm.eps)
        self.up2 = _linear_from_transposed_conv(up2)
        self.hypernetwork = decoder.output_hypernetworks_mlps[0]

    def forward(self, image_tokens: Tensor, sparse_prompt: Tensor) -> Tensor:
        """image_tokens (B,T,256) with the dense prompt added, sparse_prompt (B,P,256)
        -> low_res_masks (B,1,4s,4s)."""
        batch, grid = image_tokens.shape[0], self.grid
        tokens = torch.cat([self.output_tokens.expand(batch, -1, -1), sparse_prompt], dim=1)
        queries, keys = self.transformer(tokens, image_tokens)
        hyper = self.hypernetwork(queries if self.joined else queries[:, MASK_TOKEN])  # (B,32)

        x = self.up1(keys).reshape(batch, grid * grid * 4, -1)  # (B,T*2*2,64)
        x = self.act(self.norm(x))
        x = self.act(self.up2(x)).reshape(batch, grid * grid * 16, -1)  # (B,T*2*2*2*2,32)
        if self.joined:
            mask = (x * hyper[:, None]).sum(dim=2)  # (B,T*16)
        else:
            mask = x @ hyper[:, :, None]  # (B,T*16,1)
        # (B, row, col, row2, col2, row4, col4) -> rows and columns of the 4s x 4s mask
        mask = mask.reshape(batch, grid, grid, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return mask.reshape(batch, 1, 4 * grid, 4 * grid)


def _linear_from_transposed_conv(conv: nn.ConvTranspose2d) -> nn.Linear:
    """ConvTranspose2d(k=2, s=2) as a linear: (.., in) -> (.., 2*2*out), order (row, col, channel)."""
    n_in, n_out = conv.weight.shape[:2]
    weight = conv.weight.permute(2, 3, 1, 0).reshape(4 * n_out, n_in)  # (2*2*out,in)
    assert conv.bias is not None
    linear = nn.Linear(n_in, 4 * n_out, device="meta")
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(conv.bias.detach().repeat(4), requires_grad=False)
    return linear


def _layer_norm(weight: Tensor, bias: Tensor, eps: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(weight.shape[0], eps=eps, device="meta")
    norm.weight = nn.Parameter(weight.detach(), requires_grad=False)
    norm.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return norm


class EagerHead(nn.Module):
    """Eager neck and decoder: (B,C,s,s), prompt source, sound -> low_res_masks (B,1,4s,4s)."""

    def __init__(self, model: SaveModel) -> None:
        super().__init__()
        self.neck, self.audio_prompt = model.image_encoder.neck, model.audio_prompt
        self.post_fusion = model.post_fusion
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder

    def double(self) -> EagerHead:
        super().double()
        self.prompt_encoder.pe_layer.float()  # segment-anything builds its grid in float32
        return self

    def forward(self, features: Tensor, source: Tensor, audio: Tensor) -> Tensor:
        image_embeddings = self.neck(features)
        if self.post_fusion is not None:
            image_embeddings = self.post_fusion(image_embeddings, audio)
            source = image_embeddings.mean(dim=(2, 3))
        masks, _ = decode_masks(
            self.audio_prompt, self.prompt_encoder, self.mask_decoder, image_embeddings, source
        )
        return masks[:, :1]


class DeployHead(nn.Module):
    """The same through the rewritten parts, built from the same float64 weights."""

    def __init__(self, head: EagerHead, *, joined: bool = False) -> None:
        super().__init__()
        dense_prompt = head.prompt_encoder.no_mask_embed.weight[0]
        self.neck = DeployNeck(head.neck, dense_prompt)
        self.fusion = None
        if head.post_fusion is not None:
            self.fusion = DeployFusion(head.post_fusion, dense_prompt)
        image_pe = head.prompt_encoder.get_dense_pe().to(head.mask_decoder.iou_token.weight.dtype)
        self.decoder = DeployDecoder(head.mask_decoder, image_pe, joined=joined)
        self.prompt = None if head.audio_prompt is None else DeployPrompt(head.audio_prompt)

    def forward(self, features: Tensor, source: Tensor, audio: Tensor) -> Tensor:
        tokens = self.neck(features.permute(0, 2, 3, 1))
        if self.fusion is not None:
            tokens, source = self.fusion(tokens, audio)
        sparse = (
            tokens.new_zeros(tokens.shape[0], 0, PROMPT_DIM)
            if self.prompt is None
            else self.prompt(source)
        )
        return self.decoder(tokens, sparse)


def prove_decoder(
    model: SaveModel, merged_neck: DeployNeck, merged_decoder: DeployDecoder
) -> RewriteProof:
    """Compare low-resolution masks of random features and a random audio vector."""
    config = model.config
    raw = config.prompt_source == "raw" or config.audio_mode == "off"
    seeded = torch.Generator().manual_seed(0)
    shape = (1, config.embed_dim, config.grid, config.grid)
    features = torch.randn(shape, generator=seeded, dtype=torch.float64)
    source_shape = (1, AUDIO_DIM if raw else config.embed_dim)
    source = torch.randn(source_shape, generator=seeded, dtype=torch.float64)
    audio = torch.randn((1, AUDIO_DIM), generator=seeded, dtype=torch.float64).abs()
    inputs = (features, source, audio)
    in_float = [x.float() for x in inputs]
    eager, joined = in_double(EagerHead(model)), merged_decoder.joined
    again = DeployHead(EagerHead(model), joined=joined)
    return RewriteProof(
        name="decoder",
        folded=REWRITES["decoder"],
        kept="the other masks' tokens: mask 0 attends to them",
        params_before=count_parameters([model.image_encoder.neck, model.mask_decoder])
        + count_parameters([model.prompt_encoder]),
        params_after=count_parameters([merged_neck, merged_decoder]),
        macs_before=count_macs(EagerHead(model), *in_float),
        macs_after=count_macs(again, *in_float),
        max_rel_diff=relative_difference(eager(*inputs), DeployHead(eager, joined=joined)(*inputs)),
        compared="neck and decoder, random features and sound",
    )
