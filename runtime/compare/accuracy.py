"""Measure accuracy, parity, margin and worst frames of every entry on one dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import second
from save_deploy.data.sample import Clip, ClipDataset
from save_deploy.data.skipping import iter_clips
from save_deploy.data.transforms import resize_mask
from save_deploy.metrics.margin import Margin, MarginMeter
from save_deploy.metrics.parity import ParityMeter, ParityResult
from save_deploy.metrics.segmentation import AVSBENCH, Protocol, Score, ScoreMeter
from save_deploy.runtime.compare.entries import Entry, Pool
from save_deploy.runtime.compare.worst import WorstFrames
from save_deploy.runtime.html.data import ReportFrame
from save_deploy.runtime.pipeline import SavePipeline

# Size of a chunk of clips and reference logits, kept in memory while each model runs on it.
CHUNK_BYTES = 500_000_000


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one entry. parity and margin: None for the reference."""

    score: Score
    parity: ParityResult | None = None
    margin: Margin | None = None


def predict_clip(pipeline: SavePipeline, clip: Clip) -> NDArray[np.float32]:
    """Return mask_logits float32 (F,S,S) of a clip; each frame uses its own second of sound."""
    return pipeline.clip_logits(list(clip.frames), clip.heard())


def measure_accuracy(
    pool: Pool,
    entries: Sequence[Entry],
    clips: ClipDataset,
    *,
    res: int,
    dataset: str = "",
    worst: int = 0,
    protocol: Protocol = AVSBENCH,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Accuracy], list[ReportFrame]]:
    """Return accuracy by entry name, and the worst frames in descending order.

    entries: the first one is the reference.
    protocol: its threshold is also used for the masks that are compared with each other.
    on_step: called after each clip of each entry.
    Memory does not depend on the dataset's size: one clip if all entries are open, else one chunk of
    clips.
    """
    reference, *others = entries
    cut = protocol.logit_threshold
    scores = {entry.name: ScoreMeter(protocol) for entry in entries}
    parities = {entry.name: ParityMeter() for entry in others}
    margins = {entry.name: MarginMeter() for entry in others}
    kept = WorstFrames(worst)
    n_frames = 0
    for chunk in _chunks(iter_clips(clips), 0 if pool.resident else CHUNK_BYTES, res):
        truths = [np.stack([resize_mask(m, res) for m in clip.masks]) for clip in chunk]
        expected: list[NDArray[np.float32]] = []
        with pool.use(reference) as pipeline:
            for clip, truth in zip(chunk, truths, strict=True):
                expected.append(predict_clip(pipeline, clip))
                scores[reference.name].add(expected[-1], truth)
                on_step()
        masks: dict[str, list[NDArray[np.uint8]]] = {entry.name: [] for entry in others}
        for entry in others:
            with pool.use(entry) as pipeline:
                for clip, truth, logits in zip(chunk, truths, expected, strict=True):
                    got = predict_clip(pipeline, clip)
                    parities[entry.name].add(logits - cut, got - cut)
                    margins[entry.name].add(logits - cut, got - cut)
                    scores[entry.name].add(got, truth)
                    masks[entry.name].append(np.packbits(got > cut, axis=-1))
                    on_step()
        for i, clip in enumerate(chunk):
            found = {
                name: np.unpackbits(packed[i], axis=-1, count=res).astype(bool)
                for name, packed in masks.items()
            }
            for k in range(len(clip.frames)):
                of_frame = {name: mask[k] for name, mask in found.items()}
                logits = expected[i][k] - cut
                make = partial(_frame, clip, k, truths[i][k], logits, dataset, of_frame)
                kept.offer(logits > 0, of_frame, n_frames, make)
                n_frames += 1
    results = {
        name: Accuracy(
            meter.score(),
            parities[name].result() if name in parities else None,
            margins[name].result() if name in margins else None,
        )
        for name, meter in scores.items()
    }
    return results, kept.worst_first()


def _chunks(clips: Iterable[Clip], n_bytes: int, res: int) -> Iterator[list[Clip]]:
    """Yield successive lists of clips; each list and its logits take about n_bytes, or 1 clip."""
    chunk: list[Clip] = []
    held = 0
    for clip in clips:
        chunk.append(clip)
        held += clip.frames.nbytes + clip.masks.nbytes + len(clip.frames) * 4 * res * res
        if held >= n_bytes:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _frame(
    clip: Clip,
    index: int,
    truth: NDArray[np.bool_],
    logits: NDArray[np.float32],
    dataset: str,
    masks: dict[str, NDArray[np.bool_]],
) -> ReportFrame:
    return ReportFrame(
        name=f"{clip.name}_{index + 1}",
        dataset=dataset,
        frame=clip.frames[index].copy(),  # a view would keep the whole clip in memory
        reference=logits.copy(),
        masks={name: mask.copy() for name, mask in masks.items()},
        truth=truth.copy(),
        waveform=second(clip.waveform, index).astype(np.float32),
    )
