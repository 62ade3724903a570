"""VGGish: log-mel example -> 128-dimensional audio embedding (SPEC 3).

Layers and parameter names are those of harritaylor/torchvggish (features.{0,3,6,8,11,13},
embeddings.{0,2,4}). vit_t uses a narrower network of the same form.
"""

from __future__ import annotations

from torch import Tensor, nn

from save_deploy.config import AUDIO_DIM, SaveConfig


class AudioEncoder(nn.Module):
    """log_mel (B,1,96,64), (time, mel) -> audio_embedding (B,128), >= 0."""

    def __init__(self, config: SaveConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 1
        for i, channels in enumerate(config.audio_channels):
            layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU()]
            if i in (0, 1, 3, 5):
                layers.append(nn.MaxPool2d(2, 2))
            channels_in = channels
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(channels_in * 6 * 4, config.audio_fc),
            nn.ReLU(),
            nn.Linear(config.audio_fc, config.audio_fc),
            nn.ReLU(),
            nn.Linear(config.audio_fc, AUDIO_DIM),
            nn.ReLU(),
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.embeddings(self._flat(log_mel))

    def hear(self, log_mel: Tensor) -> Tensor:
        """Return the input of the last linear for log_mel (B,1,96,64): (B,audio_fc)."""
        return self.embeddings[:4](self._flat(log_mel))

    def _flat(self, log_mel: Tensor) -> Tensor:
        x = self.features(log_mel)  # (B,512,6,4)
        # channels-last before flattening, as in the TensorFlow original: (B,6,4,512)
        return x.permute(0, 2, 3, 1).flatten(1)
