"""The eager model on CUDA: the logits of the CPU, TF32 off, and what autocast and torch.compile give.

Written against documentation; not run on a GPU yet. A dry run stays on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from save_deploy.bundle import Arrays, Manifest
from save_deploy.runtime.eager_mode import EagerMode
from save_deploy.runtime.golden import read_golden
from tests.gpu.tree import is_dry

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
DEVICE = "cpu" if is_dry() else "cuda"
ON_CUDA = ("eager-tf32", "eager-fp16", "eager-bf16", "compile", "compile-fp16")


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The built-in one; for a dry run a tiny one."""
    if is_dry():
        from tests.conftest import tiny_file

        return tiny_file()
    from save_deploy.checkpoints import builtin_path

    return builtin_path()


@pytest.fixture(scope="module")
def inputs(make_bundle: Callable[..., Path]) -> Arrays:
    """A golden frame and its sound."""
    folder = make_bundle("fp16")
    golden = read_golden(folder, Manifest.read(folder))
    return {
        "image": golden.image[:1],
        "audio_embedding": golden.answers.audio_embedding[0].reshape(1, -1),
    }


def logits_of(checkpoint: Path, inputs: Arrays, mode: EagerMode) -> tuple[np.ndarray, float | None]:
    """-> mask_logits and the median of five times on the device."""
    from save_deploy.runtime.eager import open_eager

    res = inputs["image"].shape[1]
    with open_eager(checkpoint, None, res=res, batch=1, mode=mode) as pipeline:
        times = []
        for _ in range(2 if is_dry() else 6):
            found = pipeline.model.infer(inputs)["mask_logits"]
            times.append(getattr(pipeline.model, "device_ms", None))
    known = [t for t in times[1:] if t is not None]
    return found, float(np.median(known)) if known else None


def test_float32_is_float32(checkpoint: Path, inputs: Arrays, figures: Callable[..., None]) -> None:
    expected, _ = logits_of(checkpoint, inputs, EagerMode())
    found, ms = logits_of(checkpoint, inputs, EagerMode(DEVICE))
    error = float(np.abs(found - expected).max() / np.ptp(expected))
    figures(relative_error=error, device_ms=ms or 0.0)
    assert error < 1e-4
    assert is_dry() or ms


@pytest.mark.skipif(is_dry(), reason="on CUDA only")
@pytest.mark.parametrize("name", ON_CUDA)
def test_other_modes_are_reported(
    name: str, checkpoint: Path, inputs: Arrays, figures: Callable[..., None]
) -> None:
    """Speed, error, and whether they are finite: autocast may overflow, which is no fault of ours."""
    from save_deploy.runtime.eager_mode import named_mode

    expected, _ = logits_of(checkpoint, inputs, EagerMode(DEVICE))
    found, ms = logits_of(checkpoint, inputs, named_mode(name, DEVICE))
    finite = bool(np.isfinite(found).all())
    figures(finite=finite, device_ms=ms or 0.0)
    if finite:
        figures(
            relative_error=float(np.abs(found - expected).max() / np.ptp(expected)),
            mask_agreement=float(((found > 0) == (expected > 0)).mean()),
        )
