"""The same clips with another sound: shows whether a model listens."""

from __future__ import annotations

import dataclasses

import numpy as np

from save_deploy.data.sample import Clip, ClipDataset
from save_deploy.errors import DataError

SOUNDS = ("right", "wrong", "silent")


class SwappedSound:
    """Masks stay those of the right sound, so M_J of a model that listens must fall."""

    def __init__(self, clips: ClipDataset, how: str) -> None:
        self.clips, self.how = clips, how

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        clip = self.clips[index]
        if self.how == "silent":
            return dataclasses.replace(clip, waveform=np.zeros_like(clip.waveform), sounding=())
        return dataclasses.replace(clip, waveform=self._other(clip, index).waveform, sounding=())

    def _other(self, clip: Clip, index: int) -> Clip:
        """The next clip in which another object sounds."""
        for step in range(1, len(self.clips)):
            other = self.clips[(index + step) % len(self.clips)]
            if not set(other.category.split("_")) & set(clip.category.split("_")):
                return other
        raise DataError(
            "no clip with another sound", got=f"only {clip.category}", expected="two categories"
        )


def swap_sound(clips: ClipDataset, how: str) -> ClipDataset:
    """how: right (unchanged), wrong (the next clip's object), silent (zeros)."""
    if how not in SOUNDS:
        raise DataError("unknown sound", got=how, expected=", ".join(SOUNDS))
    return clips if how == "right" else SwappedSound(clips, how)
