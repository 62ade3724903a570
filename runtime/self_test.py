"""Golden self-test, which a GPU backend must pass once on every machine before it is used.

Kernels are selected on the GPU that runs the engine, so a test on another machine is not valid
here. The result is kept in the cache folder, keyed by everything it depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Manifest
from save_deploy.errors import ParityError
from save_deploy.files import cache_folder, keep_in_cache
from save_deploy.metrics.budget import ParityBudget
from save_deploy.metrics.parity import ParityMeter, ParityResult
from save_deploy.runtime.batches import every_slot
from save_deploy.runtime.golden import GOLDEN, embedding_bound, read_golden
from save_deploy.runtime.session.choose import Choice

FOLDER = "self_test"
_log = logging.getLogger(__name__)


class Pipeline(Protocol):
    """The part of SavePipeline that the test uses."""

    @property
    def batches(self) -> tuple[int, ...]: ...

    def embed(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def run(
        self, images: NDArray[np.uint8], audio_embedding: NDArray[np.float32]
    ) -> NDArray[np.float32]: ...


def golden_parity(
    pipeline: Pipeline,
    folder: Path,
    manifest: Manifest,
    *,
    hint: str,
    on_first: Callable[[], None] | None = None,
) -> ParityResult:
    """Run every golden sample through both graphs and return the parity.

    on_first: called after the first mask.
    Graphs with further batches run all samples too, in every place of a call.
    Raises ParityError with `hint` for logits that are not finite, and for embeddings or masks over
    the parity budget of the bundle.
    """
    golden = read_golden(folder, manifest)
    meter, embeddings = ParityMeter(), []
    for i in range(len(golden.answers)):
        embedding = pipeline.embed(golden.answers.waveform[i])
        _check_embedding(embedding[0], golden.answers.audio_embedding[i], i, manifest, hint)
        found = pipeline.run(golden.image[i : i + 1], embedding)
        if i == 0 and on_first is not None:
            on_first()
        _check_finite(found, i, manifest, hint)
        meter.add(golden.answers.mask_logits[i : i + 1], found)
        embeddings.append(embedding)
    result = meter.result()
    budget = ParityBudget(**manifest.golden["budget"])
    what = "golden samples are over the parity budget on this machine"
    result.require(budget, what=what, hint=hint)
    for batch in sorted(pipeline.batches)[1:]:  # the smallest one ran above
        slots = every_slot(len(golden.answers), batch)
        meter = ParityMeter()
        for chosen in np.split(slots, len(slots) // batch):  # calls of the one graph
            found = pipeline.run(golden.image[chosen], np.concatenate(embeddings)[chosen])
            for i, logits in zip(chosen, found, strict=True):
                _check_finite(logits, int(i), manifest, hint)
            meter.add(golden.answers.mask_logits[chosen], found)
        meter.result().require(budget, what=f"{what}, with {batch} frames a call", hint=hint)
    return result


def run_self_test(
    pipeline: Pipeline, folder: Path, manifest: Manifest, choice: Choice, *, again: bool = False
) -> ParityResult | None:
    """Run golden_parity, unless this engine passed here before; then return None.

    again: run it anyway.
    Only a pass is stored. Raises ParityError when it fails.
    """
    place = verdict_file(manifest, choice)
    if not again and place is not None and _passed(place, _key(manifest, choice)):
        return None
    cure = f"--backend onnxruntime, or build {choice.file} again on this machine"
    if choice.engine is None:
        cure = "another backend, or export again on this machine, or with --fp32"
    cure += "; --no-self-test skips this test"
    try:
        result = golden_parity(pipeline, folder, manifest, hint=cure)
    except ParityError:
        if place is not None:
            with contextlib.suppress(OSError):
                place.unlink()
        raise
    if place is not None:
        _keep(place, {"key": _key(manifest, choice), "parity": asdict(result)})
    return result


def verdict_file(manifest: Manifest, choice: Choice) -> Path | None:
    """Return the result file of a GPU backend; None for CPUs and without a writable cache."""
    folder = cache_folder(FOLDER) if choice.machine is not None else None
    if folder is None:
        return None
    text = json.dumps(_key(manifest, choice), sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _key(manifest: Manifest, choice: Choice) -> dict[str, Any]:
    """Return what the result depends on: GPU, driver, library, version, engine, golden samples."""
    machine = choice.machine
    gpu = machine.gpus[0] if machine is not None and machine.gpus else None
    golden = {n: r.sha256 for n, r in manifest.files.items() if n.startswith(f"{GOLDEN}/")}
    return {
        "gpu": gpu and [gpu.name, list(gpu.compute_capability)],
        "driver": machine and machine.driver,
        "library": choice.backend,
        **({"settings": choice.settings} if choice.settings else {}),
        "library_version": machine and machine.libraries.get(choice.backend),
        "files": {
            n: r.sha256
            for n, r in manifest.files.items()
            if n.startswith((choice.file, "audio.onnx", "model_x"))  # with their external weights
        },
        "golden": [golden, manifest.golden.get("budget")],
    }


def _passed(place: Path, key: dict[str, Any]) -> bool:
    """Return True for a stored pass; False for a missing, damaged or other file."""
    try:
        return json.loads(place.read_text())["key"] == key
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _keep(place: Path, verdict: dict[str, Any]) -> None:
    """Store a result. When that fails, the next start tests again."""
    text = json.dumps(verdict, indent=2) + "\n"
    if not keep_in_cache(place, lambda path: path.write_text(text)):
        _log.warning("the result of the self-test was not stored: %s cannot be written", place)


def _check_finite(found: NDArray[np.float32], i: int, manifest: Manifest, hint: str) -> None:
    """Raise ParityError for NaN or infinity, as when FP16 arithmetic of a GPU overflows.

    A CPU computes FP16 graphs in FP32 and does not overflow.
    """
    bad = int((~np.isfinite(found)).sum())
    if bad:
        raise ParityError(
            f"logits of this {manifest.precision['precision']} bundle are not finite on this machine",
            got=f"{bad} of {found.size} values are NaN or infinite on golden sample {i}",
            expected="finite values: FP16 ends at 65504",
            hint=hint,
        )


def _check_embedding(
    found: NDArray[np.float32], expected: NDArray[np.float32], i: int, manifest: Manifest, hint: str
) -> None:
    error = float(np.abs(found - expected).max())
    tolerance = embedding_bound(expected, manifest.golden["audio_embedding_tolerance"])
    if not error <= tolerance:
        raise ParityError(
            "audio embedding differs from eager",
            got=f"{error:.1e} on golden sample {i}",
            expected=f"at most {tolerance:.1e}",
            hint=hint,
        )
