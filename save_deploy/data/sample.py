"""What every dataset yields: a clip, and the frames of it that are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform, second
from save_deploy.data.transforms import Frame, Mask


@dataclass(frozen=True)
class Clip:
    """A few frames, one second apart, and the sound under all of them.

    frames uint8 (F,H,W,3) RGB; masks bool (F,H,W), True = what sounds; waveform float32 (n,) 16 kHz
    mono. `labels` int (F,H,W) names every object's class, silent ones too (0 = background), and
    `sounding` the classes heard; only generated data knows them.
    """

    name: str
    category: str
    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    waveform: Waveform
    labels: NDArray[np.int16] | None = None
    sounding: tuple[int, ...] = ()

    def samples(self) -> Iterator[Sample]:
        """One sample per frame, each with its own second of sound."""
        for i, (frame, mask) in enumerate(zip(self.frames, self.masks, strict=True)):
            yield Sample(
                name=f"{self.name}_{i + 1}",
                category=self.category,
                frame=frame,
                mask=mask,
                waveform=second(self.waveform, i),
                labels=None if self.labels is None else self.labels[i],
                sounding=self.sounding,
            )


@dataclass(frozen=True)
class Sample:
    """One frame uint8 (H,W,3), its second of sound float32 (16000,), its mask bool (H,W)."""

    name: str
    category: str
    frame: Frame
    mask: Mask
    waveform: Waveform
    labels: NDArray[np.int16] | None = field(default=None, repr=False)
    sounding: tuple[int, ...] = ()


class ClipDataset(Protocol):
    """An indexed source of clips; the same index always gives the same clip."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip: ...
