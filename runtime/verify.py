"""Hashes and golden samples: does this bundle give on this machine what the eager model gave?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from save_deploy.manifest import Manifest
from save_deploy.metrics.parity import ParityResult
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.self_test import golden_parity


@dataclass(frozen=True)
class Verified:
    """Parity on the golden samples, the backend that ran, and seconds from opening to first mask."""

    parity: ParityResult
    backend: str
    first_mask_s: float


def verify_bundle(folder: Path, *, backend: str = "auto", threads: int | None = None) -> Verified:
    """Hashes, then every golden sample through both graphs. Raises BundleError, or ParityError when
    the result is outside the budget the bundle was exported with."""
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
        return Verified(parity, pipeline.backend, first[0])
