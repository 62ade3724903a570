"""One training step as a module: batch in, loss out.

DistributedDataParallel wraps this module, so that gradients are reduced. A direct call of the inner
model would skip the reduction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from save_deploy.config import PROMPT_DIM
from save_deploy.model.save import SaveModel
from save_deploy.training.batches import Batch
from save_deploy.training.losses import LOSSES, pixel_class_loss, sound_class_loss
from save_deploy.training.options import Savings

N_CLASSES = 160  # labels of generated data, 0 = background
_KEEP_ALL = Savings()


class AuxHeads(nn.Module):
    """Classifiers for training only: object at each token, and sounding objects.

    They are not part of a checkpoint.
    """

    def __init__(self, audio_dim: int, n_classes: int = N_CLASSES) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(PROMPT_DIM, n_classes, 1)
        self.sound = nn.Linear(audio_dim, n_classes)
        nn.init.constant_(self.sound.bias, -4.0)  # few classes sound at the same time


@dataclass(frozen=True)
class Mixtures:
    """Extra sound mixtures of a step: log_mel (N,1,96,64), sounding (N,K)."""

    log_mel: Tensor
    sounding: Tensor


class TrainStep(nn.Module):
    """Loss of a batch, with the mixed precision and checkpointing of `savings`."""

    def __init__(
        self,
        model: SaveModel,
        aux: AuxHeads | None = None,
        *,
        aux_weight: float = 0.0,
        loss: str = "bce+iou",
        savings: Savings = _KEEP_ALL,
    ) -> None:
        super().__init__()
        self.model, self.aux, self.aux_weight = model, aux, aux_weight
        self.mask_loss, self.savings = LOSSES[loss], savings
        model.image_encoder.checkpoint_blocks = savings.checkpoint_blocks

    def forward(
        self, batch: Batch, mixtures: Mixtures | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its detached parts."""
        hidden: list[Tensor] = []
        # the sound classifier reads the layer before VGGish's last linear
        hook = self.model.audio_encoder.embeddings[3].register_forward_hook(
            lambda _m, _i, out: hidden.append(out)
        )
        with self._autocast(batch.frames):
            audio_embedding = self.model.audio_encoder(batch.log_mel)
        hook.remove()
        logits, image_embeddings = self._logits(batch.frames, audio_embedding)
        loss = masks = self.mask_loss(logits, batch.masks)
        parts = {"mask": masks.detach()}
        if self.aux is not None:
            pixels = pixel_class_loss(self.aux.pixels(image_embeddings), batch.labels)
            sound = sound_class_loss(self.aux.sound(hidden[0].float()), batch.sounding)
            loss = loss + self.aux_weight * (pixels + sound)
            parts |= {"pixels": pixels.detach(), "sound": sound.detach()}
            if mixtures is not None:
                with self._autocast(batch.frames):
                    heard = self.aux.sound(self.model.audio_encoder.hear(mixtures.log_mel))
                more = sound_class_loss(heard.float(), mixtures.sounding)
                loss = loss + self.aux_weight * more
                parts["mixtures"] = more.detach()
        return loss, parts

    def from_embedding(self, frames: Tensor, audio_embedding: Tensor, masks: Tensor) -> Tensor:
        """Return the loss for a given audio embedding, without the audio encoder."""
        return self.mask_loss(self._logits(frames, audio_embedding)[0], masks)

    def _logits(self, frames: Tensor, audio_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask_logits (B,1,S,S) and image_embeddings (B,256,s,s), both float32."""
        model = self.model
        with self._autocast(frames):
            image_embeddings, source = model.encode(model.normalize(frames), audio_embedding)
            low_res_masks, _ = model.decode(image_embeddings, source)
        return model.upsample(low_res_masks[:, :1].float()), image_embeddings.float()

    def _autocast(self, like: Tensor) -> torch.autocast:
        # with checkpointing the cache would keep a bfloat16 copy of all trained weights until backward
        return torch.autocast(
            like.device.type,
            dtype=torch.bfloat16,
            enabled=self.savings.amp,
            cache_enabled=not self.savings.checkpoint_blocks,
        )
