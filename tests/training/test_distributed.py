"""Two processes through torchrun: gradients and weights are those of one process on the joint batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from save_deploy.errors import BackendError, SaveDeployError
from save_deploy.training.distributed import team
from save_deploy.training.options import TrainConfig
from tests.training.ddp_worker import gradients

ROOT = Path(__file__).parents[2]


def torchrun(*command: str) -> None:
    args = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*args, "--standalone", *command], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.thorough
@pytest.mark.slow
def test_gradients_equal_those_of_the_joint_batch(tmp_path: Path) -> None:
    """On both processes. `bare` is the twin: called past the wrapper nothing is reduced, and the
    same comparison must fail."""
    torchrun("-m", "tests.training.ddp_worker", str(tmp_path))
    with team("cpu") as alone:
        joint = gradients(alone, "wrapped")
    largest = max(float(g.abs().max()) for g in joint.values())
    worst = {}
    for how in ("wrapped", "bare"):
        shares = [load_file(tmp_path / f"{how}_{rank}.safetensors") for rank in (0, 1)]
        assert all(share.keys() == joint.keys() and len(joint) > 100 for share in shares)
        worst[how] = max(float((s[n] - g).abs().max()) for s in shares for n, g in joint.items())
    assert worst["wrapped"] <= 1e-5 * largest and worst["bare"] > 1e-2 * largest


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BackendError, match="more processes than GPUs"), team("auto"):
        pass


@pytest.mark.thorough
def test_training_of_two_equals_training_of_one(tmp_path: Path) -> None:
    """The whole command, with accumulation and validation dealt out: same weights, same score."""
    options = (
        "train --preset vit_t --res 64 --steps 2 --batch 4 --accumulate 2 --val-clips 3 "
        "--eval-every 2 --lr 1e-3 --warmup 1"
    ).split()
    alone = [sys.executable, "-m", "save_deploy", *options, "-o", str(tmp_path / "one")]
    subprocess.run(alone, check=True, cwd=ROOT, capture_output=True, timeout=240)
    torchrun("-m", "save_deploy", *options, "-o", str(tmp_path / "two"))
    one, two = (load_file(tmp_path / n / "best.safetensors") for n in ("one", "two"))
    # Adam turns a gradient that is nearly zero into a step of its sign, so a few weights may differ
    # by a step; two steps of 1e-3 were made
    differ = torch.cat([(one[n] - two[n]).abs().flatten() for n in one])
    assert float(differ.mean()) < 2e-6
    assert float((differ > 1e-4).float().mean()) < 1e-3
    curves = [(tmp_path / n / "curve.jsonl").read_text() for n in ("one", "two")]
    j = [float(c.split('"m_j": ')[1].split(",")[0]) for c in curves]
    assert j[0] == pytest.approx(j[1], abs=0.05) and len(curves[1].splitlines()) == 1


def test_batches_that_do_not_divide() -> None:
    config = TrainConfig(data={}, batch_size=6, accumulate=2)
    assert config.share(1) == 3
    with pytest.raises(SaveDeployError, match="6 over 2 devices x 2 parts"):
        config.share(2)


def test_no_gpu_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="--device cpu"), team("cuda"):
        pass
    with pytest.raises(BackendError, match="auto, cpu or cuda"), team("tpu"):
        pass


@pytest.mark.slow
def test_validation_is_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes read every clip once between them, and bad clips keep their names."""
    from save_deploy.data.scenes import Scenes
    from save_deploy.data.skipping import SkippingDataset
    from save_deploy.errors import DataError
    from save_deploy.training.distributed import Team
    from save_deploy.training.evaluate import evaluate
    from tests.conftest import make_tiny

    class OneBad(Scenes):
        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            if index == 4:
                raise DataError("unreadable", got="clip 5")
            read.append(index)
            return super().__getitem__(index)

    read: list[int] = []
    shares: list[tuple] = []
    monkeypatch.setattr(Team, "gather", lambda self, value: shares.append(value) or [value])
    clips = SkippingDataset(OneBad(n_clips=7))
    for rank in range(3):
        evaluate(make_tiny(), clips, among=Team(rank, 3, torch.device("cpu")))
    assert sorted(read) == [0, 1, 2, 3, 5, 6]
    assert [s[2] for s in shares] == [3, 1, 2] and list(clips.skipped) == ["clip 5"]
