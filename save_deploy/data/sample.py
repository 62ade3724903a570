"""Types of clips, samples and datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform, second
from save_deploy.data.examples import LogMel, example_at, filled, log_mels, second_is_example
from save_deploy.data.transforms import Frame, Mask
from save_deploy.errors import DataError


@dataclass(frozen=True)
class Clip:
    """Frames at one-second intervals, and the sound of the whole clip.

    frames: uint8 (F,H,W,3) RGB.
    masks: bool (F,H,W), True for sounding objects.
    waveform: float32 (n,), 16 kHz mono.
    labels: int16 (F,H,W), class of every object including silent ones, 0 = background. Only
        generated data has it.
    sounding: labels of the sounding objects; only for generated data.
    log_mel: float32 (F,1,96,64) for a dataset that stores it; the waveform is then empty.
    fill: example for frames past the end of the sound, repeat (the last example) or zeros.
    """

    name: str
    category: str
    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    waveform: Waveform
    labels: NDArray[np.int16] | None = None
    sounding: tuple[int, ...] = ()
    log_mel: LogMel | None = field(default=None, repr=False)
    fill: str = "repeat"

    def heard(self) -> Waveform:
        """Return the waveform. Raises DataError for a clip that stores only log-mel."""
        return _heard(self.waveform, self.log_mel, self.name)

    def log_mels(self) -> LogMel:
        """Return the log-mel example of each frame, stored or computed: float32 (F,1,96,64)."""
        n_frames = len(self.frames)
        if self.log_mel is not None:
            return filled(self.log_mel, n_frames, self.fill)
        return log_mels(self.waveform, n_frames, self.fill)

    def samples(self) -> Iterator[Sample]:
        """Yield one sample per frame, each with its second of audio."""
        for i, (frame, mask) in enumerate(zip(self.frames, self.masks, strict=True)):
            yield make_sample(
                f"{self.name}_{i + 1}",
                self.category,
                frame,
                mask,
                Sound(self.waveform, self.log_mel, self.fill),
                i,
                labels=None if self.labels is None else self.labels[i],
                sounding=self.sounding,
            )


@dataclass(frozen=True)
class Sample:
    """One frame uint8 (H,W,3), its second of audio float32 (16000,), and its mask bool (H,W).

    log_mel float32 (1,96,64) is set when it cannot be computed from the waveform: stored log-mel,
    or a frame past the end of the sound. A sample that stores only log-mel has an empty waveform.
    """

    name: str
    category: str
    frame: Frame
    mask: Mask
    waveform: Waveform
    labels: NDArray[np.int16] | None = field(default=None, repr=False)
    sounding: tuple[int, ...] = ()
    log_mel: LogMel | None = field(default=None, repr=False)

    def heard(self) -> Waveform:
        """Return the waveform (16000,). Raises DataError for a sample that stores only log-mel."""
        return _heard(self.waveform, self.log_mel, self.name)

    def log_mel_example(self) -> LogMel:
        """Return the log-mel example of this frame, float32 (1,96,64)."""
        return self.log_mel if self.log_mel is not None else example_at(self.waveform, 0, "repeat")


@dataclass(frozen=True)
class Sound:
    """Stored sound of a clip: a waveform, or log-mel examples with an empty waveform."""

    waveform: Waveform
    log_mel: LogMel | None = None
    fill: str = "repeat"


def make_sample(
    name: str,
    category: str,
    frame: Frame,
    mask: Mask,
    sound: Sound,
    index: int,
    *,
    labels: NDArray[np.int16] | None = None,
    sounding: tuple[int, ...] = (),
) -> Sample:
    """Return the sample of frame `index` (0-based) with its waveform and log-mel example."""
    log_mel: LogMel | None = None
    if sound.log_mel is not None:
        log_mel = filled(sound.log_mel, index + 1, sound.fill)[index]
    elif not second_is_example(sound.waveform, index):
        log_mel = example_at(sound.waveform, index, sound.fill)
    stored_only = sound.log_mel is not None and not sound.waveform.size
    window = sound.waveform if stored_only else second(sound.waveform, index)
    return Sample(name, category, frame, mask, window, labels, sounding, log_mel)


def _heard(waveform: Waveform, log_mel: LogMel | None, name: str) -> Waveform:
    if waveform.size == 0 and log_mel is not None:
        raise DataError(
            "this clip stores only log-mel",
            got=name,
            expected="a waveform, which is the input of bundles",
            hint="--from wav or --from video",
        )
    return waveform


class ClipDataset(Protocol):
    """Indexed clips; the same index always returns the same clip."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip: ...


@runtime_checkable
class FrameDataset(ClipDataset, Protocol):
    """Clips whose annotated frames are known before reading."""

    def pairs(self) -> list[tuple[int, int]]:
        """Return (clip, frame) of every annotated frame, in order."""
        ...

    def sample(self, index: int, frame: int) -> Sample:
        """Read only this frame and its sound."""
        ...
