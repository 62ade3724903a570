"""Golden samples of a large model: few calls are timed, the rest runs together; the answers stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.calibration.pairs import Pairs
from save_deploy.config import SaveConfig
from save_deploy.export import memory
from save_deploy.export.golden import FEW, run_golden, write_conformance
from save_deploy.metrics.budget import ParityBudget
from save_deploy.model.save import SaveModel
from save_deploy.runtime.eager import EagerSession, eager_pipeline


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames of every call of an eager model."""
    found: list[int] = []
    infer = EagerSession.infer

    def counted(session: EagerSession, inputs: Any) -> Any:
        if "image" in inputs:
            found.append(len(inputs["image"]))
        return infer(session, inputs)

    monkeypatch.setattr(EagerSession, "infer", counted)
    return found


def pairs(side: int, n: int = 5) -> Pairs:
    rng = np.random.default_rng(0)
    return Pairs(
        rng.integers(0, 256, (n, side, side, 3), np.uint8),
        rng.normal(0, 0.1, (n, 16_000)).astype(np.float32),
        np.zeros((n, side, side), bool),
        tuple(map(str, range(n))),
    )


def test_few_calls_are_timed(tiny: Callable[..., SaveModel], calls: list[int]) -> None:
    model = tiny()
    given, done = pairs(model.config.res), list[int]()
    whole = run_golden(eager_pipeline(model), given, lambda n: done.append(n))
    assert (calls, done, len(whole.eager_latency.samples_ms)) == ([1] * 5, [1] * 5, 5)
    calls.clear()
    done.clear()
    pipeline = eager_pipeline(model, further=3)
    found = run_golden(pipeline, given, lambda n: done.append(n), timed=2)
    assert (calls, done, len(found.eager_latency.samples_ms)) == ([1, 1, 3], [1, 1, 3], 2)
    np.testing.assert_allclose(found.mask_logits, whole.mask_logits, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.audio_embedding, whole.audio_embedding)
    apart = np.abs(whole.mask_logits[2:] - whole.mask_logits[[3, 4, 2]]).max()
    assert apart > 1e-2  # the twin: rows in another order


def test_conformance_runs_together(
    tiny: Callable[..., SaveModel], calls: list[int], tmp_path: Path
) -> None:
    model = tiny()
    for name, further in (("alone", 1), ("together", 5)):
        (tmp_path / name).mkdir()
        pipeline = eager_pipeline(model, further=further)
        entry = write_conformance(tmp_path / name, pipeline, ParityBudget(None, 0.99), few=True)
        assert [case["name"] for case in entry["cases"]] == list(FEW)
    assert calls == [1] * 5 + [5]
    alone, together = (
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*"))
        for name in ("alone", "together")
    )
    assert alone == together and len(alone) == 3 * 5 + 3
    logits = [
        np.load(tmp_path / name / "conformance" / "mask_logits.npy")
        for name in ("alone", "together")
    ]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("preset", "res", "large", "together"),
    [("vit_h", 256, True, 5), ("vit_h", 1024, True, 1), ("vit_b", 256, False, 1)],
)
def test_frames_of_one_call(
    preset: str, res: int, large: bool, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vit_h at 1024 px: the scores of five frames in a global block take 5.4 GB."""

    class Weights:
        def parameters(self) -> list[Any]:
            return []

    monkeypatch.setattr(memory, "is_large", lambda *_: large)
    found = memory.WeightMemory(Weights(), SaveConfig.preset(preset, res=res))  # type: ignore[arg-type]
    assert found.together == together
