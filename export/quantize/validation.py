"""Clips that choices of precision are judged on, in memory: inputs, truth, the eager model's masks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from save_deploy.calibration.pairs import pair_digest
from save_deploy.calibration.select import is_generated
from save_deploy.calibration.table import CalibrationTable
from save_deploy.data.audio import second
from save_deploy.data.open import open_dataset
from save_deploy.data.transforms import resize_frame, resize_mask
from save_deploy.errors import DataError
from save_deploy.metrics.segmentation import ScoreMeter
from save_deploy.runtime.pipeline import SavePipeline

SPLIT = "val"


@dataclass(frozen=True)
class Scored:
    """M_J and M_F as in save-eval, agreement: IoU of all masks with the eager model's, pooled."""

    m_j: float
    m_f: float
    agreement: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Validation:
    """Clips of F frames one after the other: images uint8 (N,S,S,3), audio_embedding (N,128), truth
    and the eager model's masks bool (N,S,S); sizes: frames of each clip."""

    data: str
    images: NDArray[np.uint8]
    audio_embedding: NDArray[np.float32]
    truth: NDArray[np.bool_]
    eager_masks: NDArray[np.bool_]
    eager: Scored
    sizes: tuple[int, ...]
    sha256: str

    def score(self, pipeline: SavePipeline) -> Scored:
        return _score(
            pipeline.run(self.images, self.audio_embedding),
            self.truth, self.eager_masks, self.sizes,
        )  # fmt: skip


def make_validation(
    eager: SavePipeline, name: str, n_clips: int, table: CalibrationTable, *,
    on_clip: Callable[[], object] = lambda: None,
) -> Validation:  # fmt: skip
    """n clips of the val split at equal distances through the eager model.

    Raises DataError when a pair of them is one that the table's ranges were measured on.
    """
    clips = open_dataset(name, split=SPLIT, n_clips=n_clips if is_generated(name) else None)
    chosen = np.unique(np.linspace(0, len(clips) - 1, min(n_clips, len(clips))).astype(int))
    images, embeddings, truth, sizes, logits = [], [], [], [], []
    res, seen = eager.config.res, set(table.data["pair_sha256"])
    digest = hashlib.sha256()
    for i in chosen:
        clip = clips[int(i)]
        heard = clip.heard()
        for k, frame in enumerate(clip.frames):
            image, sound = resize_frame(frame, res), second(heard, k)
            pair = pair_digest(image, sound)
            if pair in seen:
                raise DataError(
                    "the precision search overlaps the calibration",
                    got=f"frame {k + 1} of {clip.name}",
                    expected=f"other pairs than the {len(seen)} that ranges were measured on",
                    hint="--calib-split train, or another --search-data",
                )
            digest.update(pair.encode())
            images.append(image)
            embeddings.append(eager.embed(sound))
            truth.append(resize_mask(clip.masks[k], res))
        sizes.append(len(clip.frames))
        start = len(images) - sizes[-1]
        logits.append(eager.run(np.stack(images[start:]), np.concatenate(embeddings[start:])))
        on_clip()
    stacked = np.concatenate(logits)
    truths = np.stack(truth)
    masks = stacked > 0
    return Validation(
        data=name,
        images=np.stack(images),
        audio_embedding=np.concatenate(embeddings),
        truth=truths,
        eager_masks=masks,
        eager=_score(stacked, truths, masks, tuple(sizes)),
        sizes=tuple(sizes),
        sha256=digest.hexdigest(),
    )


def _score(
    logits: NDArray[np.float32], truth: NDArray[np.bool_], eager: NDArray[np.bool_],
    sizes: tuple[int, ...],
) -> Scored:  # fmt: skip
    meter = ScoreMeter()
    for start, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
        meter.add(logits[start : start + size], truth[start : start + size])
    score = meter.score()
    masks = logits > 0
    union = int((masks | eager).sum())
    agreement = int((masks & eager).sum()) / union if union else 1.0
    return Scored(score.m_j, score.m_f, agreement)
