"""Audio graph: waveform -> log-mel -> VGGish -> audio embedding.

The short-time Fourier transform is a strided convolution, which every runtime supports. torch's
rfft would export as DFT, which TensorRT rejects.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from save_deploy.data.log_mel import (
    EXAMPLE_SAMPLES,
    FFT,
    HOP,
    LOG_OFFSET,
    WINDOW,
    hann_window,
    mel_filterbank,
)
from save_deploy.model.audio_encoder import AudioEncoder


class LogMel(nn.Module):
    """Compute log_mel (B,1,96,64) from waveform (B,16000), 16 kHz in [-1,1], like data.log_mel."""

    def __init__(self) -> None:
        super().__init__()
        angles = 2 * np.pi * np.outer(np.arange(FFT // 2 + 1), np.arange(WINDOW)) / FFT
        kernels = np.concatenate([np.cos(angles), -np.sin(angles)]) * hann_window()  # (514,400)
        self.kernels = _constant(kernels[:, None, :])
        self.filterbank = _constant(mel_filterbank())

    def forward(self, waveform: Tensor) -> Tensor:
        heard = waveform[:, None, :EXAMPLE_SAMPLES]  # (B,1,15600): exactly 96 frames
        spectrum = nn.functional.conv1d(heard, self.kernels, stride=HOP)  # (B,514,96)
        real, imaginary = spectrum.chunk(2, dim=1)
        magnitude = (real * real + imaginary * imaginary).sqrt().transpose(1, 2)  # (B,96,257)
        return torch.log(magnitude @ self.filterbank + LOG_OFFSET)[:, None]


class DeployAudioEncoder(nn.Module):
    """Compute audio_embedding float32 (B,128) from waveform float32 (B,16000).

    Runs once per second of audio.
    """

    def __init__(self, audio_encoder: AudioEncoder) -> None:
        super().__init__()
        self.log_mel = LogMel()
        self.audio_encoder = audio_encoder

    def forward(self, waveform: Tensor) -> Tensor:
        return self.audio_encoder(self.log_mel(waveform))


def _constant(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values.astype(np.float32)), requires_grad=False)
