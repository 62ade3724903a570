"""SAM's mask decoder with a fix for batches: B images with B prompts stay B images."""

from __future__ import annotations

import torch
from segment_anything.modeling.mask_decoder import MaskDecoder as SamMaskDecoder
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

from save_deploy.config import PROMPT_DIM, SaveConfig
from save_deploy.model.adapters import AdaptedMlp

MLP_DIM = 2048


class MaskDecoder(SamMaskDecoder):  # type: ignore[misc]
    """segment-anything's MaskDecoder (3 multimask outputs, 2 two-way layers, 8 heads).

    Upstream repeats every image once per prompt, so B frames with B audio prompts would become B^2
    images (SPEC 1.5). Here images are repeated only when their number differs from the number of
    prompts.
    """

    def __init__(self, config: SaveConfig) -> None:
        transformer = TwoWayTransformer(
            depth=2, embedding_dim=PROMPT_DIM, mlp_dim=MLP_DIM, num_heads=8
        )
        if config.decoder_adapter == "bottleneck":  # GAVS: GELU in the bottleneck, with a residual
            for layer in transformer.layers:
                layer.mlp = AdaptedMlp(
                    PROMPT_DIM,
                    MLP_DIM,
                    bottleneck=config.bottleneck_dim,
                    adapter_act=nn.GELU,
                    act=nn.ReLU,
                )
        super().__init__(transformer_dim=PROMPT_DIM, transformer=transformer)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return low_res_masks (B,4,4s,4s) and iou_predictions (B,4).

        image_embeddings: (B,256,s,s).
        image_pe: (1,256,s,s).
        sparse_prompt_embeddings: (B,P,256).
        dense_prompt_embeddings: (B,256,s,s).
        """
        batch = sparse_prompt_embeddings.shape[0]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        output_tokens = output_tokens[None].expand(batch, -1, -1)  # (B,5,256)
        tokens = torch.cat([output_tokens, sparse_prompt_embeddings], dim=1)  # (B,5+P,256)

        src = image_embeddings
        if src.shape[0] != batch:
            src = src.repeat_interleave(batch // src.shape[0], dim=0)
        src = src + dense_prompt_embeddings
        _, channels, height, width = src.shape
        hs, src = self.transformer(src, image_pe.expand(batch, -1, -1, -1), tokens)

        src = src.transpose(1, 2).reshape(batch, channels, height, width)
        upscaled = self.output_upscaling(src)  # (B,32,4s,4s)
        hyper_in = torch.stack(
            [mlp(hs[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )  # (B,4,32)
        masks = (hyper_in @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])  # (B,4,4s,4s)
        return masks, self.iou_prediction_head(hs[:, 0])
