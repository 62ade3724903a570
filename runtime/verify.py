"""Hashes, golden samples, conformance pack: does this bundle give here what the eager model gave?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from save_deploy.bundle import Manifest
from save_deploy.metrics.parity import ParityResult
from save_deploy.runtime.conformance import Conformed, check_conformance
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.self_test import golden_parity


@dataclass(frozen=True)
class Verified:
    """Parity on the golden samples, the backend that ran, seconds from opening to first mask, and how
    frames and sounds are prepared here (None: no pack)."""

    parity: ParityResult
    backend: str
    first_mask_s: float
    conformed: Conformed | None


def verify_bundle(folder: Path, *, backend: str = "auto", threads: int | None = None) -> Verified:
    """Hashes, then golden samples and conformance pack through both graphs. Raises BundleError, or
    ParityError when a result is outside the budget the bundle was exported with."""
    started, first = time.perf_counter(), list[float]()
    manifest = Manifest.read(folder)
    with load(folder, backend=backend, threads=threads, self_test=False) as pipeline:
        parity = golden_parity(
            pipeline,
            folder,
            manifest,
            hint="export again on this machine, or with --fp32",
            on_first=lambda: first.append(time.perf_counter() - started),
        )
        conformed = check_conformance(folder, pipeline) if manifest.conformance else None
        return Verified(parity, pipeline.backend, first[0], conformed)
