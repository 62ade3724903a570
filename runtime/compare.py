"""Backends against eager on a dataset: accuracy, agreement and speed in one run.

The parts are in runtime/comparison/; here is the short way for pipelines that are open already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from save_deploy.data.sample import ClipDataset
from save_deploy.data.skipping import iter_clips
from save_deploy.metrics.latency import speedup
from save_deploy.metrics.segmentation import AVSBENCH, Protocol
from save_deploy.runtime.comparison.accuracy import measure_accuracy
from save_deploy.runtime.comparison.accuracy import predict_clip as predict_clip
from save_deploy.runtime.comparison.entries import REFERENCE as REFERENCE
from save_deploy.runtime.comparison.entries import Entry, Pool
from save_deploy.runtime.comparison.row import Row as Row
from save_deploy.runtime.comparison.speed import example_inputs as example_inputs
from save_deploy.runtime.comparison.speed import time_models as time_models
from save_deploy.runtime.pipeline import SavePipeline


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
    """All pipelines on the same clips; `pipelines` has an entry named eager, the reference.

    -> rows in the order of `pipelines`. on_clip: after each clip of each pipeline.
    """
    entries = {
        name: Entry(name, p.backend, p.precision, sizes_mb[name]) for name, p in pipelines.items()
    }
    reference = entries[REFERENCE]
    ordered = [reference, *(e for name, e in entries.items() if name != REFERENCE)]
    found, _ = measure_accuracy(
        Pool(opened=pipelines),
        ordered,
        clips,
        res=pipelines[REFERENCE].config.res,
        protocol=protocol,
        on_step=on_clip,
    )
    inputs = example_inputs(pipelines[REFERENCE], next(iter_clips(clips)))
    latencies = time_models(pipelines, inputs, rounds=rounds, budget_s=budget_s)
    return [
        Row(
            backend=entry.backend,
            precision=entry.precision,
            size_mb=entry.size_mb,
            latency=latencies[name],
            speedup=speedup(latencies[REFERENCE], latencies[name]),
            score=found[name].score,
            parity=found[name].parity,
            margin=found[name].margin,
        )
        for name, entry in entries.items()
    ]
