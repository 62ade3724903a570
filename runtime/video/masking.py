"""Mask frames in batches of the bundle, each with its second of sound."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.transforms import Mask, resize_frame
from save_deploy.runtime.inputs import require_finite
from save_deploy.runtime.pipeline import Listener, SavePipeline, at_frame_size
from save_deploy.runtime.result import logit_of
from save_deploy.runtime.video.sinks import MaskedFrame
from save_deploy.runtime.video.source import TimedFrame

T = TypeVar("T")


def masked(
    pipeline: SavePipeline, listener: Listener, frames: Iterable[TimedFrame]
) -> Generator[MaskedFrame, None, None]:
    """Yield every frame with its mask. listener: a Listener of this pipeline."""
    side = pipeline.config.res
    for group in in_groups(frames, pipeline.batch):
        embeddings, seconds = [], []
        for frame in group:
            embeddings.append(listener.hear(frame.time_s))
            seconds.append((listener.second, listener.waveform))
        if pipeline.batch == 1:
            masks: list[Mask] = [pipeline.mask(group[0].picture, embeddings[0])]
        else:
            images = np.stack([resize_frame(frame.picture, side) for frame in group])
            logits = finite_logits(pipeline, images, np.concatenate(embeddings))
            sizes = [frame.picture.shape[:2] for frame in group]
            limit = logit_of(pipeline.threshold)
            masks = [at_frame_size(*pair) > limit for pair in zip(logits, sizes, strict=True)]
        for frame, mask, (second, waveform) in zip(group, masks, seconds, strict=True):
            yield MaskedFrame(frame, mask, second, waveform)


def finite_logits(
    pipeline: SavePipeline, images: NDArray[np.uint8], embeddings: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return mask_logits float32 (F,S,S). Raises ParityError for NaN or infinite values.

    images: uint8 (F,S,S,3); embeddings: float32 (F,128).
    """
    logits = pipeline.run(images, embeddings)
    require_finite(logits)
    return logits


def in_groups(items: Iterable[T], n: int) -> Iterator[list[T]]:
    """Yield lists of n successive items; the last one may be shorter."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if len(group) == n:
            yield group
            group = []
    if group:
        yield group
