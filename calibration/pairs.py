"""A few real pairs of frame and sound, spread over a dataset, with a hash that names them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import is_silent
from save_deploy.data.sample import ClipDataset
from save_deploy.data.transforms import resize_frame, resize_mask
from save_deploy.errors import DataError


@dataclass(frozen=True)
class Pairs:
    """N pairs at network size: image uint8 (N,S,S,3), waveform float32 (N,16000), truth bool
    (N,S,S), and where each came from."""

    image: NDArray[np.uint8]
    waveform: NDArray[np.float32]
    truth: NDArray[np.bool_]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sha256(self) -> str:
        """Hash of the pixels and samples, not of the files they came from."""
        digest = hashlib.sha256(self.image.tobytes())
        digest.update(self.waveform.tobytes())
        return digest.hexdigest()


def collect_pairs(clips: ClipDataset, n: int, *, res: int) -> Pairs:
    """n pairs from clips at equal distances (fewer when the dataset is smaller), a different frame of
    each clip in turn. Raises DataError when all of them are silent."""
    n = min(n, len(clips))
    chosen = []
    for k, index in enumerate(np.linspace(0, len(clips) - 1, n).round().astype(int)):
        samples = list(clips[int(index)].samples())
        chosen.append(samples[k % len(samples)])
    if all(is_silent(s.heard()) for s in chosen):
        raise DataError(
            "every chosen sound is silent",
            got=f"{len(chosen)} silent seconds, such as {chosen[0].name}",
            expected="sounds to hear: silence would prove nothing about the audio side",
        )
    return Pairs(
        image=np.stack([resize_frame(s.frame, res) for s in chosen]),
        waveform=np.stack([s.heard() for s in chosen]),
        truth=np.stack([resize_mask(s.mask, res) for s in chosen]),
        names=tuple(s.name for s in chosen),
    )
