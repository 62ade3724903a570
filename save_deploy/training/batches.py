"""Endless seeded training samples from a mixture of datasets, and batches of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from save_deploy.data.compose import Staging
from save_deploy.data.open import open_dataset
from save_deploy.data.sample import ClipDataset, FrameDataset, Sample
from save_deploy.data.skipping import SkippingDataset
from save_deploy.data.transforms import resize_frame, resize_mask

N_ENDLESS = 1 << 40


@dataclass(frozen=True)
class Batch:
    """One training batch.

    frames: uint8 (B,S,S,3).
    log_mel: float32 (B,1,96,64).
    masks: float32 (B,1,S,S).
    labels: int64 (B,S,S), all 0 when the source has none.
    sounding: float32 (B,K), all 0 when the source has none.
    """

    frames: Tensor
    log_mel: Tensor
    masks: Tensor
    labels: Tensor
    sounding: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def split(self, size: int) -> list[Batch]:
        """Split into batches of `size` samples, in order."""
        columns = (getattr(self, f.name).split(size) for f in fields(self))
        return [Batch(*part) for part in zip(*columns, strict=True)]


class MixedSamples:
    """Endless samples: item i is a labeled frame of a source drawn by weight.

    Items are a function of (seed, i), so a resumed run gets the same samples as an uninterrupted
    one. A single stored dataset is read in epochs: every labeled frame once, in a new order each
    time. From a mixture, and from generated data, frames are drawn at random.
    """

    def __init__(
        self,
        mixture: dict[str, float],
        *,
        res: int,
        staging: Staging,
        seed: int,
        n_classes: int,
        skip_bad: bool = False,
        sound_from: str = "auto",
        by_video: bool = False,
    ) -> None:
        self.mixture, self.res, self.staging = mixture, res, staging
        self.seed, self.n_classes, self.by_video = seed, n_classes, by_video
        self.sources: list[ClipDataset] = [
            open_dataset(
                name,
                split="train",
                n_clips=None if generated(name) is None else N_ENDLESS,
                seed=seed,
                n_sources=None,
                staging=staging,
                source=sound_from,
                skip_bad=skip_bad,
            )
            for name in mixture
        ]
        self._orders: dict[int, list[int]] = {}
        self._pairs = {
            k: source.pairs()
            for k, (name, source) in enumerate(zip(mixture, self.sources, strict=True))
            if generated(name) is None and isinstance(source, FrameDataset)
        }

    @property
    def skipped(self) -> dict[str, str]:
        """Bad clips found so far: name -> reason."""
        found: dict[str, str] = {}
        for source in self.sources:
            if isinstance(source, SkippingDataset):
                found |= source.skipped
        return found

    def sample(self, index: int) -> Sample:
        """Return the labeled frame of item `index`."""
        rng = np.random.default_rng([self.seed, index])
        weights = np.array(list(self.mixture.values()))
        chosen = int(rng.choice(len(weights), p=weights / weights.sum()))
        source, pairs = self.sources[chosen], self._pairs.get(chosen)
        if pairs is None:
            samples = list(source[index].samples())
            return samples[int(rng.integers(len(samples)))]
        assert isinstance(source, FrameDataset)
        if len(self.sources) == 1:
            epoch, position = divmod(index, len(pairs))
            return source.sample(*pairs[self._order(epoch, pairs)[position]])
        return source.sample(*pairs[int(rng.integers(len(pairs)))])

    def _order(self, epoch: int, pairs: list[tuple[int, int]]) -> list[int]:
        """Return the order of `pairs` in this epoch: shuffled frames, or shuffled videos.

        Frames of one video are consecutive.
        """
        known = self._orders  # never modified in place, because several threads read it
        if epoch in known:
            return known[epoch]
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(pairs))
        if self.by_video:
            clips = np.array([clip for clip, _ in pairs])
            order = np.lexsort((np.arange(len(pairs)), rng.permutation(clips.max() + 1)[clips]))
        self._orders = {epoch: (found := order.tolist())}
        return found

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """Return frame, log_mel, mask, labels and sounding of item `index`, as in Batch."""
        sample = self.sample(index)
        labels = np.zeros((self.res, self.res), np.int64)
        if sample.labels is not None and sample.labels.shape == labels.shape:
            labels = sample.labels.astype(np.int64)
        sounding = np.zeros(self.n_classes, np.float32)
        sounding[list(sample.sounding)] = 1.0
        return (
            resize_frame(sample.frame, self.res),
            sample.log_mel_example(),
            resize_mask(sample.mask, self.res)[None].astype(np.float32),
            labels,
            sounding,
        )


def generated(name: str) -> str | None:
    """Return the generator of a source, or None for stored data."""
    base = name.partition(":")[0]
    return base if base in ("scenes", "stamps") else None


def batches(
    samples: MixedSamples,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    part: tuple[int, int] = (0, 1),
    threads: int = 2,
    ahead: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of steps first_step .. last_step - 1.

    The batch of step k has samples k*batch_size .. (k+1)*batch_size - 1; part (r, n) is the r-th of
    n equal parts of it.
    threads: how many draw samples.
    ahead: how many further batches they draw during a step. 0 for a model on the CPU, from which
        they would take cores.
    """
    rank, world = part
    size = batch_size // world
    with ThreadPoolExecutor(threads) as pool:
        drawn: deque[Iterator[tuple[np.ndarray, ...]]] = deque()
        for step in range(first_step, last_step + ahead):
            if step < last_step:
                start = step * batch_size + rank * size
                drawn.append(pool.map(samples.__getitem__, range(start, start + size)))
            if step >= first_step + ahead:
                columns = zip(*drawn.popleft(), strict=True)
                yield Batch(*(torch.from_numpy(np.stack(column)) for column in columns))
