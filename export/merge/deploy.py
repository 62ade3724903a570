"""Conversion of a SaveModel to a DeployModel for one resolution, with a proof of equality."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from save_deploy.config import AUDIO_DIM, PROMPT_DIM
from save_deploy.export.merge.audio import BATCHED_MODES, DeployAudio, DeployPrompt, prove_audio
from save_deploy.export.merge.block import DeployBlock, prove_blocks
from save_deploy.export.merge.decoder import (
    DeployDecoder,
    DeployFusion,
    DeployNeck,
    EagerHead,
    prove_decoder,
)
from save_deploy.export.merge.forms import REWRITES, Forms
from save_deploy.export.merge.patch_embed import (
    DeployPatchEmbed,
    EagerPatchEmbed,
    prove_normalize,
)
from save_deploy.export.merge.proof import MergeProof, count_macs
from save_deploy.model.image_encoder import Block
from save_deploy.model.save import SaveModel


class DeployModel(nn.Module):
    """Inference-only model for one resolution.

    image uint8 (B,S,S,3) RGB, audio_embedding float32 (B,128) -> mask_logits (B,1,S,S).
    """

    def __init__(self, model: SaveModel, forms: Forms | None = None) -> None:
        super().__init__()
        forms = self.forms = forms or Forms()
        config = self.config = model.config
        encoder = model.image_encoder
        self.inject = config.audio_inject
        self.patch_embed: nn.Module = EagerPatchEmbed(model)
        if forms.normalise:
            self.patch_embed = DeployPatchEmbed(
                encoder.patch_embed.proj, encoder.pos_embed, model.pixel_mean, model.pixel_std
            )
        self.blocks = nn.ModuleList(
            DeployBlock(cast(Block, block), config.grid, forms) for block in encoder.blocks
        )
        self.audio_adapter: nn.Module = model.audio_adapter
        if forms.audio and config.audio_mode in BATCHED_MODES:
            self.audio_adapter = DeployAudio(model.audio_adapter)
        self.head: nn.Module | None = None
        if not forms.decoder:
            self.head = EagerHead(model)
            return
        dense_prompt = model.prompt_encoder.no_mask_embed.weight[0]
        self.neck = DeployNeck(encoder.neck, dense_prompt)
        self.fusion = None
        if model.post_fusion is not None:
            self.fusion = DeployFusion(model.post_fusion, dense_prompt)
        self.audio_prompt: nn.Module | None = model.audio_prompt
        if forms.audio and model.audio_prompt is not None:
            self.audio_prompt = DeployPrompt(model.audio_prompt)
        image_pe = model.prompt_encoder.get_dense_pe().to(encoder.pos_embed.dtype)
        self.mask_decoder = DeployDecoder(model.mask_decoder, image_pe, joined=forms.joined)

    def forward(self, image: Tensor, audio_embedding: Tensor) -> Tensor:
        injections, prompt_source = self.audio_adapter(audio_embedding)
        x = self.patch_embed(image)
        for i, block in enumerate(self.blocks):
            if self.inject == "before":
                x = x + injections[i][:, None, None, :]
            x = block(x)
            if self.inject == "after":
                x = x + injections[i][:, None, None, :]
        low_res_masks = self._decode(x, prompt_source, audio_embedding)
        size = (self.config.res, self.config.res)
        return nn.functional.interpolate(low_res_masks, size, mode="bilinear", align_corners=False)

    def _decode(self, x: Tensor, prompt_source: Tensor, audio_embedding: Tensor) -> Tensor:
        """Decode x (B,s,s,C) to low_res_masks (B,1,4s,4s).

        prompt_source: (B,C), or (B,128) for raw prompts.
        audio_embedding: (B,128).
        """
        if self.head is not None:
            features = x.permute(0, 3, 1, 2)  # (B,C,s,s)
            return self.head(features, prompt_source, audio_embedding)
        tokens = self.neck(x)
        if self.fusion is not None:
            tokens, prompt_source = self.fusion(tokens, audio_embedding)
        if self.audio_prompt is None:
            sparse = x.new_zeros(x.shape[0], 0, PROMPT_DIM)
        else:
            sparse = self.audio_prompt(prompt_source)
        return self.mask_decoder(tokens, sparse)


class FrameModel(nn.Module):
    """Eager model with the inputs and output of DeployModel, to count its multiplications."""

    def __init__(self, model: SaveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, audio_embedding: Tensor) -> Tensor:
        return self.model.forward_embedding(frames, audio_embedding)


def merge(
    model: SaveModel, forms: Forms | None = None, *, on_block: Callable[[], object] = lambda: None
) -> tuple[DeployModel, MergeProof]:
    """Create the deploy model of an eager model in eval mode, and prove that both are equal.

    Weights that no rewrite changes are shared. For the proof, each rewritten part is rebuilt from a
    float64 copy and compared with its eager original, so it tests the algebra, not rounding.
    on_block: called after each compared block.
    """
    deploy = DeployModel(model, forms).eval().requires_grad_(False)
    return deploy, prove(model, deploy, on_block)


@torch.inference_mode()
def prove(
    model: SaveModel, deploy: DeployModel, on_block: Callable[[], object] = lambda: None
) -> MergeProof:
    """Compare each rewritten part of `deploy` with its eager original in float64."""
    config, forms = model.config, deploy.forms
    rewrites = []
    if isinstance(deploy.patch_embed, DeployPatchEmbed):
        rewrites.append(prove_normalize(model, deploy.patch_embed))
    blocks = [cast(Block, block) for block in model.image_encoder.blocks]
    in_blocks, per_block = prove_blocks(blocks, config, forms, on_block)
    rewrites += in_blocks
    if deploy.head is None:
        rewrites.append(prove_decoder(model, deploy.neck, deploy.mask_decoder))
    if isinstance(deploy.audio_adapter, DeployAudio):
        rewrites.append(prove_audio(model.audio_adapter, deploy.audio_adapter))
    frame = torch.empty(1, config.res, config.res, 3, dtype=torch.uint8, device="meta")
    sound = torch.empty(1, AUDIO_DIM, device="meta")
    return MergeProof(
        rewrites=tuple(rewrites),
        switched_off=tuple(n for n in REWRITES if n not in {r.name for r in rewrites}),
        forms=forms.to_dict(),
        blocks=per_block,
        macs_before=count_macs(FrameModel(model), frame, sound),
        macs_after=count_macs(deploy, frame, sound),
    )
