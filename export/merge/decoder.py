"""Rewrite of the mask decoder: one mask, constants folded, upscaling as matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from save_deploy.export.merge.image import _layer_norm
from save_deploy.model.mask_decoder import MaskDecoder


class DeployDecoder(nn.Module):
    """Mask 0 of SAM's decoder (multimask_output=False).

    Dropped: the hypernetworks and products of the three other masks, the IoU head. Kept: their
    tokens, which mask 0 attends to. Constant: the positional grid and the output tokens. The
    transposed convolutions (kernel 2, stride 2) are linears on tokens, so LayerNorm2d becomes a
    LayerNorm over the last axis and only the finished one-channel mask changes layout.
    """

    def __init__(self, decoder: MaskDecoder, image_pe: Tensor) -> None:
        super().__init__()
        self.grid = image_pe.shape[-1]
        self.transformer = decoder.transformer
        self.image_pe = nn.Parameter(
            image_pe.flatten(2).permute(0, 2, 1).contiguous(), requires_grad=False
        )  # (1,T,256)
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
        queries, keys = self._two_way(tokens, image_tokens)
        hyper = self.hypernetwork(queries[:, 1])  # (B,32)

        x = self.up1(keys).reshape(batch, grid * grid * 4, -1)  # (B,T*2*2,64)
        x = self.act(self.norm(x))
        x = self.act(self.up2(x)).reshape(batch, grid * grid * 16, -1)  # (B,T*2*2*2*2,32)
        mask = x @ hyper[:, :, None]  # (B,T*16,1)
        # (B, row, col, row2, col2, row4, col4) -> rows and columns of the 4s x 4s mask
        mask = mask.reshape(batch, grid, grid, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return mask.reshape(batch, 1, 4 * grid, 4 * grid)

    def _two_way(self, tokens: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """TwoWayTransformer.forward without its layout changes."""
        queries, keys = tokens, image_tokens
        for layer in self.transformer.layers:
            queries, keys = layer(queries=queries, keys=keys, query_pe=tokens, key_pe=self.image_pe)
        attended = self.transformer.final_attn_token_to_image(
            q=queries + tokens, k=keys + self.image_pe, v=keys
        )
        return self.transformer.norm_final_attn(queries + attended), keys


def _linear_from_transposed_conv(conv: nn.ConvTranspose2d) -> nn.Linear:
    """ConvTranspose2d(k=2, s=2) as a linear: (.., in) -> (.., 2*2*out), order (row, col, channel)."""
    n_in, n_out = conv.weight.shape[:2]
    weight = conv.weight.permute(2, 3, 1, 0).reshape(4 * n_out, n_in)  # (2*2*out,in)
    assert conv.bias is not None
    linear = nn.Linear(n_in, 4 * n_out, device="meta")
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(conv.bias.detach().repeat(4), requires_grad=False)
    return linear
