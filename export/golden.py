"""Golden samples: real pairs and the eager model's outputs, inside the bundle for every client."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.calibration.pairs import Pairs
from save_deploy.errors import ExportError
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime.pipeline import SavePipeline


@dataclass(frozen=True)
class Golden:
    """N pairs with the eager embedding (N,128) and logits (N,S,S), and eager's time per frame."""

    pairs: Pairs
    audio_embedding: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    eager_latency: LatencyResult


def run_golden(
    pipeline: SavePipeline, pairs: Pairs, on_pair: Callable[..., object] = lambda **_: None
) -> Golden:
    """The eager model on the pairs; on_pair(n=...) is told how many are done.

    Raises ExportError when it gives NaN or infinite values."""
    embeddings = np.concatenate([pipeline.embed(waveform) for waveform in pairs.waveform])
    logits, samples, batch = [], [], pipeline.batch
    for start in range(0, len(pairs), batch):
        chosen = slice(start, start + batch)
        begin = time.perf_counter()
        logits.append(pipeline.run(pairs.image[chosen], embeddings[chosen]))
        samples.append((time.perf_counter() - begin) * 1000)
        on_pair(n=len(pairs.image[chosen]))
    latency = LatencyResult(tuple(samples), batch)
    golden = Golden(pairs, embeddings, np.concatenate(logits), latency)
    if not (np.isfinite(golden.mask_logits).all() and np.isfinite(golden.audio_embedding).all()):
        raise ExportError(
            "the eager model gives NaN or infinite values",
            got="non-finite logits on golden samples",
            expected="finite logits",
            hint="check the checkpoint",
        )
    return golden


def write_golden(folder: Path, golden: Golden) -> dict[str, object]:
    """golden/*.npy below the bundle; returns its entry in the manifest."""
    place = folder / "golden"
    place.mkdir()
    np.save(place / "image.npy", golden.pairs.image)
    np.save(place / "waveform.npy", golden.pairs.waveform)
    np.save(place / "truth.npy", golden.pairs.truth)
    np.save(place / "audio_embedding.npy", golden.audio_embedding)
    np.save(place / "mask_logits.npy", golden.mask_logits)
    return {
        "n": len(golden.pairs),
        "names": list(golden.pairs.names),
        "data_sha256": golden.pairs.sha256,
        "audio_embedding_tolerance": 1e-3,
    }


def predict_golden(pipeline: SavePipeline, pairs: Pairs) -> NDArray[np.float32]:
    """Logits (N,S,S) of a pipeline on the pairs, through its own audio side."""
    embeddings = np.concatenate([pipeline.embed(waveform) for waveform in pairs.waveform])
    return pipeline.run(pairs.image, embeddings)
