"""Parity, accuracy, size and speed of every graph of an export against eager, on golden samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Arrays
from save_deploy.config import SaveConfig
from save_deploy.errors import BackendError
from save_deploy.export.batches import BatchProof
from save_deploy.export.golden import Golden, predict_golden
from save_deploy.export.options import ExportOptions
from save_deploy.extras import install_line
from save_deploy.metrics.latency import LatencyResult, speedup
from save_deploy.metrics.parity import parity
from save_deploy.metrics.segmentation import score_videos
from save_deploy.precision import Precision
from save_deploy.runtime.compare.entries import REFERENCE, Entry, GraphFile, Pool
from save_deploy.runtime.compare.rows import Row
from save_deploy.runtime.compare.speed import time_entries, time_interleaved
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import available_backends
from save_deploy.runtime.session.open import fits

LARGE_ROUNDS = 3  # timed calls of a large model, each of which takes seconds


@dataclass(frozen=True)
class Eager:
    """The eager reference.

    pipeline None: two models do not fit into memory, and eager was timed in the golden run.
    """

    pipeline: SavePipeline | None
    size_mb: float

    @property
    def entry(self) -> Entry:
        return Entry(REFERENCE, REFERENCE, "fp32", self.size_mb)


@dataclass(frozen=True)
class Proved:
    """Result of the comparison.

    entries: the graphs, the bundle's own last.
    rows: rows of the table, eager first.
    logits: (N,S,S) per entry.
    inputs: inputs of the timed calls.
    interleaved: True when all entries were timed in every round.
    batches: parity of the graphs with further batches.
    """

    entries: list[Entry]
    rows: list[Row]
    logits: list[NDArray[np.float32]]
    inputs: Arrays
    interleaved: bool
    batches: tuple[BatchProof, ...] = ()


def require_fp8_backend() -> list[str]:
    """Return the backends that compute in FP8. Raises BackendError when there is none."""
    if "openvino" in available_backends():
        return ["openvino"]
    raise BackendError(
        "an FP8 bundle cannot be checked here",
        got="no OpenVINO, and ONNX Runtime has no FP8 kernels on a CPU",
        expected="a backend that computes in FP8",
        hint=f"{install_line('openvino')}, or --int8",
    )


def choose_entries(
    options: ExportOptions, config: SaveConfig, compared: Sequence[tuple[str, Path]], folder: Path,
    *, large: bool,
) -> list[Entry]:  # fmt: skip
    """Return which graphs are run on which backends.

    compared: (precision, file) of graphs that only the table needs.
    folder: folder of the bundle's own graph, which is the last entry.
    large: one session at a time. A backend that needs more memory than is free is left out, except
        ONNX Runtime, which can map its weights.
    """
    backends = sorted(available_backends(), reverse=True)
    if options.precision.quantized == "fp8":
        backends = require_fp8_backend()
    elif large and not options.precision.quantized:
        backends = ["onnxruntime"]
    own, quantized = str(options.precision), options.precision.quantized
    audio = folder / "audio.onnx"
    entries = []
    for precision, path in (*compared, (own, folder / "model.onnx")):
        asked, low_memory = backends, False
        if precision != own and not quantized:
            asked = ["onnxruntime"]
        if large:
            fitting = not quantized or fits(path)
            asked = [b for b in asked if fitting or b == "onnxruntime"] or asked
            # with mapped weights ONNX Runtime does not use INT8 kernels
            low_memory = Precision.parse(precision).quantized is None and not (
                quantized and fitting
            )
        small = precision == own and options.int8_weight_bits == 7
        graph = GraphFile(path, config, options.batch, audio, low_memory, small)
        entries += [
            Entry(
                f"{backend} {precision}", backend, precision, _size_mb(folder, path),
                threads=options.threads, graph=graph,
            )
            for backend in asked
        ]  # fmt: skip
    return entries


def prove_entries(
    golden: Golden, eager: Eager, entries: list[Entry], options: ExportOptions,
    on_entry: Callable[[str], object] = lambda _: None,
) -> Proved:  # fmt: skip
    """Run and time every entry.

    Without an eager pipeline, entries are opened, timed and closed one after another.
    on_entry: called with the name of an entry when its masks are computed.
    """
    chosen = np.arange(options.batch) % len(golden.pairs)
    inputs: Arrays = {
        "image": golden.pairs.image[chosen],
        "audio_embedding": golden.audio_embedding[chosen],
    }
    together = eager.pipeline is not None
    opened = {REFERENCE: eager.pipeline} if eager.pipeline is not None else {}
    latency: dict[str, LatencyResult] = {REFERENCE: golden.eager_latency}
    logits: list[NDArray[np.float32]] = []
    with Pool(resident=together, opened=opened) as pool:
        for entry in entries:
            with pool.use(entry) as pipeline:
                logits.append(predict_golden(pipeline, golden.pairs))
                if not together:
                    latency |= _time_alone(entry, pipeline, inputs)
            on_entry(entry.name)
        if together:
            everyone = [eager.entry, *entries]
            latency = time_entries(
                pool, everyone, inputs, rounds=options.rounds, extend=False
            ).latency

    def row(entry: Entry, predicted: NDArray[np.float32]) -> Row:
        reference, taken = latency[REFERENCE], latency[entry.name]
        videos = [(p[None], t[None]) for p, t in zip(predicted, golden.pairs.truth, strict=True)]
        return Row(
            backend=entry.backend,
            precision=entry.precision,
            size_mb=entry.size_mb,
            latency=taken,
            speedup=speedup(reference, taken, interleaved=together),
            score=score_videos(videos),
            parity=None if entry.name == REFERENCE else parity(golden.mask_logits, predicted),
        )

    rows = [row(eager.entry, golden.mask_logits)]
    rows += [row(entry, predicted) for entry, predicted in zip(entries, logits, strict=True)]
    return Proved(entries, rows, logits, inputs, interleaved=together)


def require_budget(proved: Proved, options: ExportOptions, details: tuple[str, ...]) -> None:
    """Raise ParityError for a graph of the bundle's precision that is over the parity budget.

    details: further lines of the error.
    """
    hint = "export with --fp32, or allow more: --min-agreement, --max-logit-error"
    if options.precision.quantized:
        hint = "keep MatMuls in float with --max-drop, or allow more with --min-agreement"
    own = str(options.precision)
    found = [
        (row.backend, row.parity) for row in proved.rows if row.precision == own and row.parity
    ]
    found += [(f"{p.backend}, {p.batch} frames a call,", p.parity) for p in proved.batches]
    for backend, result in found:
        result.require(
            options.budget,
            what=f"{backend} {own} is over the parity budget; no bundle was written",
            hint=hint,
            details=details,
        )


def _time_alone(entry: Entry, pipeline: SavePipeline, inputs: Arrays) -> dict[str, LatencyResult]:
    """Time one large graph alone. It is opened only once, and its golden run was the warm-up."""
    return time_interleaved(
        {entry.name: partial(pipeline.model.infer, inputs)},
        rounds=LARGE_ROUNDS, warmup=0, batch=len(inputs["image"]),
        threads=entry.threads,
    )  # fmt: skip


def _size_mb(folder: Path, graph: Path) -> float:
    """Return the size in MB of a graph with its weights and of the audio graph."""
    files = [f for f in folder.iterdir() if f.name.startswith((graph.name, "audio.onnx"))]
    return sum(f.stat().st_size for f in files) / 1e6
