"""Backends against eager on a dataset: accuracy, agreement and speed in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.sample import Clip, ClipDataset
from save_deploy.data.tolerant import iter_clips
from save_deploy.data.transforms import resize_frame, resize_mask
from save_deploy.metrics.latency import LatencyResult, speedup
from save_deploy.metrics.parity import ParityMeter, ParityResult
from save_deploy.metrics.segmentation import AVSBENCH, Protocol, Score, ScoreMeter
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.timing import time_interleaved
from save_deploy.specs import Arrays

REFERENCE = "eager"


@dataclass(frozen=True)
class Row:
    """One line of the comparison table. Parity and speed-up are against eager in the same run."""

    backend: str
    precision: str
    size_mb: float
    latency: LatencyResult
    speedup: float
    score: Score
    parity: ParityResult | None


def predict_clip(pipeline: SavePipeline, clip: Clip) -> NDArray[np.float32]:
    """Logits of every frame at network size, each frame with its own second: (F,S,S)."""
    return pipeline.clip_logits(list(clip.frames), clip.heard())


def compare(
    pipelines: Mapping[str, SavePipeline],
    sizes_mb: Mapping[str, float],
    clips: ClipDataset,
    *,
    rounds: int = 20,
    budget_s: float = 20.0,
    protocol: Protocol = AVSBENCH,
    on_clip: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All pipelines on the same clips; `pipelines` has an entry named eager, the reference."""
    res = pipelines[REFERENCE].config.res
    meters = {name: ParityMeter() for name in pipelines if name != REFERENCE}
    scores = {name: ScoreMeter(protocol) for name in pipelines}
    first: Clip | None = None
    for clip in iter_clips(clips):
        first = first or clip
        truth = np.stack([resize_mask(m, res) for m in clip.masks])
        logits = {name: predict_clip(pipeline, clip) for name, pipeline in pipelines.items()}
        for name, meter in meters.items():
            meter.add(logits[REFERENCE], logits[name])
        for name in pipelines:
            scores[name].add(logits[name], truth)
        on_clip()
    assert first is not None  # iter_clips raises when there is no good clip
    latencies = time_models(
        pipelines, example_inputs(pipelines[REFERENCE], first), rounds=rounds, budget_s=budget_s
    )
    return [
        Row(
            backend=pipeline.backend,
            precision=pipeline.precision,
            size_mb=sizes_mb[name],
            latency=latencies[name],
            speedup=speedup(latencies[REFERENCE], latencies[name]),
            score=scores[name].score(),
            parity=meters[name].result() if name in meters else None,
        )
        for name, pipeline in pipelines.items()
    ]


def example_inputs(pipeline: SavePipeline, clip: Clip) -> Arrays:
    """Real inputs of the model graph: the first frames of a clip and their sound."""
    samples = [s for s, _ in zip(cycle(clip.samples()), range(pipeline.batch), strict=False)]
    return {
        "image": np.stack([resize_frame(s.frame, pipeline.config.res) for s in samples]),
        "audio_embedding": np.concatenate([pipeline.embed(s.heard()) for s in samples]),
    }


def time_models(
    pipelines: Mapping[str, SavePipeline], inputs: Arrays, *, rounds: int, budget_s: float
) -> dict[str, LatencyResult]:
    """One call of the model graph each (a frame, or a clip), interleaved; audio is not timed."""
    calls = {
        name: (lambda p=pipeline: p.model.infer(inputs)) for name, pipeline in pipelines.items()
    }
    batch = len(inputs["image"])
    return time_interleaved(calls, rounds=rounds, budget_s=budget_s, batch=batch)
