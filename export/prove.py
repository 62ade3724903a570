"""Every graph of an export on its golden samples: parity, accuracy, size and speed against eager."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Arrays, audio_spec, model_spec
from save_deploy.config import SaveConfig
from save_deploy.export.golden import Golden, predict_golden
from save_deploy.metrics.latency import LatencyResult, speedup
from save_deploy.metrics.parity import parity
from save_deploy.metrics.segmentation import score_videos
from save_deploy.runtime.compare import Row
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import open_session
from save_deploy.runtime.timing import time_interleaved

MIN_ROUNDS = 8  # of a call of seconds; 20 seconds are its budget


@dataclass(frozen=True)
class Entry:
    """One graph file on one backend. low_memory: see open_session."""

    backend: str
    precision: str
    path: Path
    low_memory: bool = False


@dataclass(frozen=True)
class Proved:
    """entries: the graphs, the bundle's own last; rows: of the table, eager first; logits: (N,S,S) per
    entry; inputs: those of the timed calls; interleaved: all entries were timed in every round."""

    entries: list[Entry]
    rows: list[Row]
    logits: list[NDArray[np.float32]]
    inputs: Arrays
    interleaved: bool


def prove_entries(
    config: SaveConfig, golden: Golden, eager: SavePipeline | None, eager_mb: float,
    entries: list[Entry], folder: Path, *, batch: int, rounds: int, threads: int | None,
    on_entry: Callable[[str], object] = lambda _: None,
) -> Proved:  # fmt: skip
    """eager None: the model is too large for two to be held; it was timed before, and the entries
    are opened, timed and closed one after the other. on_entry(name) is called behind each of them, or
    behind its masks."""
    chosen = np.arange(batch) % len(golden.pairs)
    inputs: Arrays = {
        "image": golden.pairs.image[chosen],
        "audio_embedding": golden.audio_embedding[chosen],
    }
    latency: dict[str, LatencyResult] = {}
    logits: list[NDArray[np.float32]] = []
    if eager is None:
        reference = golden.eager_latency
        for entry in entries:
            pipeline = _open(config, entry, folder, batch, threads)
            logits.append(predict_golden(pipeline, golden.pairs))
            calls = {_name(entry): partial(pipeline.model.infer, inputs)}
            latency |= time_interleaved(
                calls, rounds=max(MIN_ROUNDS, len(golden.pairs) + 2), warmup=0, batch=batch
            )
            pipeline.close()
            del pipeline, calls
            gc.collect()
            on_entry(_name(entry))
    else:
        pipelines = [_open(config, entry, folder, batch, threads) for entry in entries]
        for entry, pipeline in zip(entries, pipelines, strict=True):
            logits.append(predict_golden(pipeline, golden.pairs))
            on_entry(_name(entry))
        calls = {"eager": partial(eager.model.infer, inputs)}
        for entry, pipeline in zip(entries, pipelines, strict=True):
            calls[_name(entry)] = partial(pipeline.model.infer, inputs)
        latency = time_interleaved(calls, rounds=rounds, batch=batch)
        reference = latency["eager"]
        for pipeline in pipelines:
            pipeline.close()

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
    for entry, predicted in zip(entries, logits, strict=True):
        size = _size_mb(folder, entry.path)
        rows.append(row(entry.backend, entry.precision, size, latency[_name(entry)], predicted))
    return Proved(entries, rows, logits, inputs, interleaved=eager is not None)


def _open(
    config: SaveConfig, entry: Entry, folder: Path, batch: int, threads: int | None
) -> SavePipeline:
    return SavePipeline(
        config=config,
        precision=entry.precision,
        audio=open_session(entry.backend, folder / "audio.onnx", audio_spec(), threads=threads),
        model=open_session(
            entry.backend, entry.path, model_spec(config, batch), threads=threads,
            low_memory=entry.low_memory,
        ),
    )  # fmt: skip


def _name(entry: Entry) -> str:
    return f"{entry.backend} {entry.precision}"


def _size_mb(folder: Path, graph: Path) -> float:
    """Of a graph with its weights, and the audio side."""
    files = [f for f in folder.iterdir() if f.name.startswith((graph.name, "audio.onnx"))]
    return sum(f.stat().st_size for f in files) / 1e6
