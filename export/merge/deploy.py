"""merge: SaveModel -> DeployModel, one resolution, inference only, and the proof of equality."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from save_deploy.config import PROMPT_DIM
from save_deploy.export.merge.attention import DeployBlock, prove_attention
from save_deploy.export.merge.audio import DeployAudio, DeployPrompt, prove_audio
from save_deploy.export.merge.decoder import DeployDecoder, DeployNeck, prove_decoder
from save_deploy.export.merge.patch_embed import DeployPatchEmbed, prove_normalise
from save_deploy.export.merge.proof import MergeProof
from save_deploy.model.image_encoder import Block
from save_deploy.model.save import SaveModel


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


def merge(model: SaveModel) -> tuple[DeployModel, MergeProof]:
    """Merge an eager model in eval mode; the deploy model shares its weights where unchanged.

    Every part that was rewritten is rebuilt from a float64 copy and compared with its eager original,
    so the proof is about the algebra, not about rounding.
    """
    deploy = DeployModel(model).eval().requires_grad_(False)
    with torch.inference_mode():
        rewrites = [
            prove_normalise(model, deploy.patch_embed),
            prove_attention(model, deploy.blocks),
            prove_decoder(model, deploy.neck, deploy.mask_decoder),
        ]
        if isinstance(deploy.audio_adapter, DeployAudio):
            rewrites.append(prove_audio(model.audio_adapter, deploy.audio_adapter))
    return deploy, MergeProof(tuple(rewrites))
