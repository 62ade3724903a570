"""Clips with the wrong sound or silence, to test whether a model uses the sound."""

from __future__ import annotations

import dataclasses

import numpy as np

from save_deploy.data.examples import filled
from save_deploy.data.log_mel import LOG_OFFSET
from save_deploy.data.sample import Clip, ClipDataset
from save_deploy.data.skipping import SkippingDataset
from save_deploy.errors import DataError
from save_deploy.fields import check_word

SOUNDS = ("right", "wrong", "silent")


class SwappedSound:
    """Clips with another sound and unchanged masks.

    M_J of a model that uses the sound must drop on them.
    """

    def __init__(self, clips: ClipDataset, how: str) -> None:
        self.clips, self.how = clips, how

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        clip = self.clips[index]
        if self.how == "silent":
            return _silenced(clip)
        other = self._other(clip, index)
        log_mel = other.log_mel
        if log_mel is not None:
            log_mel = filled(log_mel, len(clip.frames), clip.fill)
        return dataclasses.replace(clip, waveform=other.waveform, log_mel=log_mel, sounding=())

    def _other(self, clip: Clip, index: int) -> Clip:
        """Return the next clip with another sounding object.

        MS3 has no labels of sources: the next clip is used.
        """
        for step in range(1, len(self.clips)):
            try:
                other = self.clips[(index + step) % len(self.clips)]
            except DataError:
                if isinstance(self.clips, SkippingDataset):
                    continue
                raise
            unknown = clip.category == other.category == "multi"
            if unknown or not set(other.category.split("_")) & set(clip.category.split("_")):
                return other
        raise DataError(
            "no clip with another sound", got=f"only {clip.category}", expected="two categories"
        )


def _silenced(clip: Clip) -> Clip:
    log_mel = clip.log_mel
    if log_mel is not None:
        log_mel = np.full_like(log_mel, np.log(LOG_OFFSET))
    return dataclasses.replace(
        clip, waveform=np.zeros_like(clip.waveform), log_mel=log_mel, sounding=()
    )


def swap_sound(clips: ClipDataset, how: str) -> ClipDataset:
    """Return clips with sound `how`: right (unchanged), wrong (another clip's), silent (zeros)."""
    check_word("sound", how, SOUNDS, DataError)
    if how == "right":
        return clips
    swapped = SwappedSound(clips, how)
    return clips.over(swapped) if isinstance(clips, SkippingDataset) else swapped
