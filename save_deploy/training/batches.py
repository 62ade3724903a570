"""Endless seeded training samples from a mixture of sources, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from save_deploy.data.compose import Staging
from save_deploy.data.log_mel import log_mel_examples
from save_deploy.data.open import open_dataset
from save_deploy.data.sample import ClipDataset
from save_deploy.data.transforms import resize_frame, resize_mask

N_ENDLESS = 1 << 40


@dataclass(frozen=True)
class Batch:
    """frames uint8 (B,S,S,3), log_mel (B,1,96,64), masks float (B,1,S,S); labels int64 (B,S,S) and
    sounding float (B,K) where the source knows them."""

    frames: Tensor
    log_mel: Tensor
    masks: Tensor
    labels: Tensor
    sounding: Tensor


class MixedSamples:
    """Item i draws a source by weight and a clip of it, then one labelled frame; a pure function of
    (seed, i), so a resumed run sees what an uninterrupted one would."""

    def __init__(
        self, mixture: dict[str, float], *, res: int, staging: Staging, seed: int, n_classes: int
    ) -> None:
        self.mixture, self.res, self.staging = mixture, res, staging
        self.seed, self.n_classes = seed, n_classes
        self.sources: list[ClipDataset] = [
            open_dataset(
                name, split="train", n_clips=N_ENDLESS, seed=seed, n_sources=None, staging=staging
            )
            for name in mixture
        ]

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([self.seed, index])
        weights = np.array(list(self.mixture.values()))
        source = self.sources[int(rng.choice(len(weights), p=weights / weights.sum()))]
        clip = source[index if len(source) == N_ENDLESS else int(rng.integers(len(source)))]
        samples = list(clip.samples())
        sample = samples[int(rng.integers(len(samples)))]
        labels = np.zeros((self.res, self.res), np.int64)
        if sample.labels is not None and sample.labels.shape == labels.shape:
            labels = sample.labels.astype(np.int64)
        sounding = np.zeros(self.n_classes, np.float32)
        sounding[list(sample.sounding)] = 1.0
        return (
            resize_frame(sample.frame, self.res),
            log_mel_examples(sample.waveform)[0],
            resize_mask(sample.mask, self.res)[None].astype(np.float32),
            labels,
            sounding,
        )


def batches(
    samples: MixedSamples, *, batch_size: int, first_step: int, last_step: int, threads: int = 2
) -> Iterator[Batch]:
    """Batch of step k holds samples k*batch_size .. (k+1)*batch_size - 1.

    Drawn by a few threads between steps: on a CPU, worker processes take cores from the model.
    """
    with ThreadPoolExecutor(threads) as pool:
        for step in range(first_step, last_step):
            items = pool.map(samples.__getitem__, range(step * batch_size, (step + 1) * batch_size))
            yield Batch(*(torch.from_numpy(np.stack(field)) for field in zip(*items, strict=True)))
