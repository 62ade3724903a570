"""Every graph of an export on its golden samples: parity, accuracy, size and speed against eager."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.config import SaveConfig
from save_deploy.export.golden import Golden, predict_golden
from save_deploy.metrics.latency import LatencyResult, speedup
from save_deploy.metrics.parity import parity
from save_deploy.metrics.segmentation import score_videos
from save_deploy.runtime.compare import Row
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import open_session
from save_deploy.runtime.timing import time_interleaved
from save_deploy.specs import Arrays, audio_spec, model_spec


@dataclass(frozen=True)
class Entry:
    """One graph file on one backend."""

    backend: str
    precision: str
    path: Path


@dataclass(frozen=True)
class Proved:
    """Rows of the table, eager first; logits (N,S,S) of every entry, in their order; the inputs that
    were timed."""

    rows: list[Row]
    logits: list[NDArray[np.float32]]
    inputs: Arrays


def prove_entries(
    config: SaveConfig, golden: Golden, eager: SavePipeline | None, eager_mb: float,
    entries: list[Entry], folder: Path, *, batch: int, rounds: int, threads: int | None,
) -> Proved:  # fmt: skip
    """eager None: the model is too large to be held beside a session; it was timed before."""
    pipelines = [
        SavePipeline(
            config=config,
            precision=entry.precision,
            audio=open_session(
                entry.backend, folder / "audio.onnx", audio_spec(), threads=threads
            ),
            model=open_session(
                entry.backend,
                entry.path,
                model_spec(config, batch),
                threads=threads,
                low_memory=eager is None and entry.precision in ("fp32", "fp16"),
            ),
        )
        for entry in entries
    ]  # fmt: skip
    logits = [predict_golden(pipeline, golden.pairs) for pipeline in pipelines]
    chosen = np.arange(batch) % len(golden.pairs)
    inputs: Arrays = {
        "image": golden.pairs.image[chosen],
        "audio_embedding": golden.audio_embedding[chosen],
    }
    calls = {
        f"{entry.backend} {entry.precision}": (lambda p=pipeline: p.model.infer(inputs))
        for entry, pipeline in zip(entries, pipelines, strict=True)
    }
    if eager is None:
        latency = time_interleaved(calls, rounds=len(golden.pairs) + 2, warmup=0, batch=batch)
        reference = golden.eager_latency
    else:
        latency = time_interleaved(
            {"eager": lambda: eager.model.infer(inputs), **calls}, rounds=rounds, batch=batch
        )
        reference = latency["eager"]

    def row(
        backend: str, precision: str, size_mb: float, taken: LatencyResult,
        predicted: NDArray[np.float32],
    ) -> Row:  # fmt: skip
        videos = [(p[None], t[None]) for p, t in zip(predicted, golden.pairs.truth, strict=True)]
        return Row(
            backend=backend,
            precision=precision,
            size_mb=size_mb,
            latency=taken,
            speedup=speedup(reference, taken)
            if eager is not None
            else reference.p50_ms / taken.p50_ms,
            score=score_videos(videos),
            parity=None if backend == "eager" else parity(golden.mask_logits, predicted),
        )

    rows = [row("eager", "fp32", eager_mb, reference, golden.mask_logits)]
    for entry, pipeline, predicted in zip(entries, pipelines, logits, strict=True):
        taken = latency[f"{entry.backend} {entry.precision}"]
        size = _size_mb(folder, entry.path)
        rows.append(row(entry.backend, entry.precision, size, taken, predicted))
        pipeline.close()
    return Proved(rows, logits, inputs)


def _size_mb(folder: Path, graph: Path) -> float:
    """Of a graph with its weights, and the audio side."""
    files = [f for f in folder.iterdir() if f.name.startswith((graph.name, "audio.onnx"))]
    return sum(f.stat().st_size for f in files) / 1e6
