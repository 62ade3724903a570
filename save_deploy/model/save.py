"""SaveModel, the eager model as trained. It is the reference of all parity measurements."""

from __future__ import annotations

import torch
from segment_anything.modeling.prompt_encoder import PromptEncoder
from torch import Tensor, nn

from save_deploy.config import PROMPT_DIM, SaveConfig
from save_deploy.model.adapters import AudioAdapters, AudioPrompt, PostFusion
from save_deploy.model.audio_encoder import AudioEncoder
from save_deploy.model.image_encoder import ImageEncoder
from save_deploy.model.mask_decoder import MaskDecoder

PIXEL_MEAN = (123.675, 116.28, 103.53)  # SAM's values for RGB in 0..255
PIXEL_STD = (58.395, 57.12, 57.375)


class SaveModel(nn.Module):
    """Eager model: frames and one second of audio -> mask logits.

    Modules are named as in SAM's state dict.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SaveConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(PROMPT_DIM, (config.grid,) * 2, (config.res,) * 2, 16)
        self.mask_decoder = MaskDecoder(config)
        self.audio_encoder = AudioEncoder(config)
        self.audio_adapter = AudioAdapters(config)
        self.audio_prompt = AudioPrompt(config) if config.prompt_source != "off" else None
        self.post_fusion = PostFusion() if config.post_fusion == "add" else None
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor, log_mel: Tensor) -> Tensor:
        """Return mask_logits (B,1,S,S).

        frames: uint8 (B,S,S,3) RGB.
        log_mel: float32 (B,1,96,64).
        """
        return self.forward_embedding(frames, self.audio_encoder(log_mel))

    def forward_embedding(self, frames: Tensor, audio_embedding: Tensor) -> Tensor:
        """Return mask_logits (B,1,S,S).

        frames: uint8 (B,S,S,3) RGB.
        audio_embedding: float32 (B,128).
        """
        image_embeddings, prompt_source = self.encode(self.normalize(frames), audio_embedding)
        low_res_masks, _ = self.decode(image_embeddings, prompt_source)
        return self.upsample(low_res_masks[:, :1])

    def normalize(self, frames: Tensor) -> Tensor:
        """Normalize uint8 (B,S,S,3) RGB with SAM's mean and standard deviation: (B,3,S,S)."""
        image = frames.permute(0, 3, 1, 2).to(self.pixel_mean.dtype)  # (B,3,S,S)
        return (image - self.pixel_mean) / self.pixel_std

    def encode(self, image: Tensor, audio_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return image_embeddings (B,256,s,s) with audio injected, and the prompt source (B,C).

        After post-fusion the source is the mean over pixels of the fused embedding, (B,256).
        """
        injections, prompt_source = self.audio_adapter(audio_embedding)
        use = injections if self.config.audio_inject != "none" else None
        image_embeddings = self.image_encoder(image, use)
        if self.post_fusion is not None:
            image_embeddings = self.post_fusion(image_embeddings, audio_embedding)
            prompt_source = image_embeddings.mean(dim=(2, 3))
        return image_embeddings, prompt_source

    def decode(self, image_embeddings: Tensor, prompt_source: Tensor) -> tuple[Tensor, Tensor]:
        """Return low_res_masks (B,4,S/4,S/4) and iou_predictions (B,4)."""
        return decode_masks(
            self.audio_prompt,
            self.prompt_encoder,
            self.mask_decoder,
            image_embeddings,
            prompt_source,
        )

    def upsample(self, low_res_masks: Tensor) -> Tensor:
        """Resize (B,M,S/4,S/4) to (B,M,S,S), bilinear, align_corners=False, as SAM does."""
        size = (self.config.res, self.config.res)
        return nn.functional.interpolate(low_res_masks, size, mode="bilinear", align_corners=False)


def decode_masks(
    audio_prompt: AudioPrompt | None,
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    image_embeddings: Tensor,
    prompt_source: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return low_res_masks (B,4,4s,4s) and iou_predictions (B,4).

    image_embeddings: (B,256,s,s).
    prompt_source: (B,C).
    Without an audio prompt the sparse prompt is empty (SAMA-AVS).
    """
    batch, _, height, width = image_embeddings.shape
    sparse = image_embeddings.new_zeros(batch, 0, PROMPT_DIM)
    if audio_prompt is not None:
        sparse = audio_prompt(prompt_source)
    dense = prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    return mask_decoder.predict_masks(
        image_embeddings=image_embeddings,
        image_pe=prompt_encoder.get_dense_pe().to(image_embeddings.dtype),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense.expand(batch, -1, height, width),
    )
