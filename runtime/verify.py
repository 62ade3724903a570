"""The golden self-test: does this bundle give on this machine what the eager model gave?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from save_deploy.errors import ParityError
from save_deploy.manifest import Manifest
from save_deploy.metrics.parity import ParityBudget, ParityMeter, ParityResult
from save_deploy.runtime.pipeline import load


@dataclass(frozen=True)
class Verified:
    """Parity on the golden samples, the backend that ran, and seconds from opening to first mask."""

    parity: ParityResult
    backend: str
    first_mask_s: float


def verify_bundle(folder: Path, *, backend: str = "auto", threads: int | None = None) -> Verified:
    """Hashes, then every golden sample through both graphs. Raises BundleError, or ParityError when
    the result is outside the budget the bundle was exported with."""
    started, first_mask_s = time.perf_counter(), 0.0
    manifest = Manifest.read(folder)
    with load(folder, backend=backend, threads=threads) as pipeline:
        image, waveform, embedding, logits = (
            np.load(folder / "golden" / f"{name}.npy", allow_pickle=False)
            for name in ("image", "waveform", "audio_embedding", "mask_logits")
        )
        meter = ParityMeter()
        for i in range(len(image)):
            heard = pipeline.embed(waveform[i])
            error = float(np.abs(heard[0] - embedding[i]).max())
            tolerance = manifest.golden["audio_embedding_tolerance"] * max(
                1.0, float(np.abs(embedding[i]).max())
            )
            if not error <= tolerance:
                raise ParityError(
                    "audio embedding differs from eager",
                    got=f"{error:.1e} on golden sample {i}",
                    expected=f"at most {tolerance:.1e}",
                )
            found = pipeline.run(image[i : i + 1], heard)
            first_mask_s = first_mask_s or time.perf_counter() - started
            meter.add(logits[i : i + 1], found)
    result, budget = meter.result(), ParityBudget(**manifest.golden["budget"])
    result.require(
        budget,
        what="golden samples are over the parity budget on this machine",
        hint="export again on this machine, or with --fp32",
    )
    return Verified(result, pipeline.backend, first_mask_s)
