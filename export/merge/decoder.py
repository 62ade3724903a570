"""Deploy form of neck and mask decoder: one mask, constants folded, upscaling as linears.

Shapes: s x s grid of tokens, T = s*s, P prompt tokens, C encoder channels.
"""

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

MASK_TOKEN = 1  # index of mask 0 among the output tokens; 0 is the IoU token


class DeployNeck(nn.Module):
    """SAM's neck, channels-last: (B,s,s,C) -> (B,T,256), with the dense prompt added.

    LayerNorm2d becomes LayerNorm. The dense prompt is constant (no_mask_embed) and is folded into
    the bias of the last norm.
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
        # (B,s,s,256) -> (B,256,s,s) for the 3x3 convolution
        x = self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B,s,s,256)
        return self.norm2(x).flatten(1, 2)  # (B,T,256)


class DeployFusion(nn.Module):
    """Post-fusion on tokens that include the dense prompt, which the prompt source excludes."""

    def __init__(self, fusion: PostFusion, dense_prompt: Tensor) -> None:
        super().__init__()
        self.proj = fusion.proj
        self.dense_prompt = nn.Parameter(dense_prompt.detach(), requires_grad=False)

    def forward(self, tokens: Tensor, audio_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Compute fused tokens and prompt source (B,256).

        tokens: (B,T,256).
        audio_embedding: (B,128).
        """
        fused = tokens + self.proj(audio_embedding)[:, None, :]
        return fused, fused.mean(dim=1) - self.dense_prompt


class DeployDecoder(nn.Module):
    """Mask 0 of SAM's decoder (multimask_output=False).

    Removed: the IoU head, and the hypernetworks and products of the three other masks. Kept: the
        tokens of all masks, because mask 0 attends to them. Constant: positions and output tokens.
    The transposed convolutions (kernel 2, stride 2) become linears on tokens, so LayerNorm2d
    becomes LayerNorm and only the final one-channel mask changes its layout.
    joined: the transformer is a JoinedTransformer, and the mask is a weighted sum, which TensorRT
        fuses into the kernel that computes its terms.
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
        """Compute logits of mask 0, (B,1,4s,4s).

        image_tokens: (B,T,256), with the dense prompt added.
        sparse_prompt: (B,P,256).
        """
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
        # (B,T*16) -> (B,row,col,row2,col2,row4,col4) -> (B,row,row2,row4,col,col2,col4) -> (B,1,4s,4s)
        mask = mask.reshape(batch, grid, grid, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return mask.reshape(batch, 1, 4 * grid, 4 * grid)


def _linear_from_transposed_conv(conv: nn.ConvTranspose2d) -> nn.Linear:
    """Return ConvTranspose2d(kernel 2, stride 2) as a linear: (...,in) -> (...,2*2*out).

    The order of the outputs is row, column, channel.
    """
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
    """Eager neck and decoder, to compare with DeployHead.

    features (B,C,s,s), prompt source, audio (B,128) -> low_res_masks (B,1,4s,4s).
    """

    def __init__(self, model: SaveModel) -> None:
        super().__init__()
        self.neck, self.audio_prompt = model.image_encoder.neck, model.audio_prompt
        self.post_fusion = model.post_fusion
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder

    def double(self) -> EagerHead:
        super().double()
        self.prompt_encoder.pe_layer.float()  # segment-anything computes positions in float32
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
    """Rewritten neck and decoder, with the inputs and output of EagerHead."""

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
        tokens = self.neck(features.permute(0, 2, 3, 1))  # (B,C,s,s) -> (B,s,s,C) -> (B,T,256)
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
    """Compare low_res_masks in float64, for random features and a random audio embedding."""
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
