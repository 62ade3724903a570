"""Shared fixtures: small seeded models with non-trivial biases, norms and position tables."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Cores of its own, before any library counts them: threads of two tests would wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    own = cores[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, own or cores)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As under nohup: programs that tests start and interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from torch import nn

from save_deploy.config import SaveConfig
from save_deploy.machine import read_nvidia
from save_deploy.model.save import SaveModel

TINY: dict[str, Any] = dict(
    name="vit_t",
    res=64,
    embed_dim=32,
    depth=3,
    num_heads=2,
    global_blocks=(2,),
    window_size=3,  # a 4x4 grid, so two of three blocks have padded windows
    audio_hidden=24,
    audio_channels=(4, 4, 8, 8, 8, 8),
    audio_fc=16,
)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Biases, norms and position tables away from their trivial initial values."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "rel_pos" in name or "pos_embed" in name or "no_mask" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.3 * noise.to(parameter.dtype))
    return model


def make_tiny(**changes: Any) -> SaveModel:
    torch.manual_seed(0)
    model = SaveModel(SaveConfig(**{**TINY, **changes}))
    randomise(model)
    return model.requires_grad_(False).eval()


@pytest.fixture
def tiny() -> Callable[..., SaveModel]:
    """Build a small model: tiny(depth=2, audio_mode="recursive", ...)."""
    return make_tiny


@pytest.fixture
def inputs() -> Callable[[SaveModel, int], tuple[torch.Tensor, torch.Tensor]]:
    """frames uint8 (B,S,S,3) and log_mel (B,1,96,64) for a model."""

    def make(model: SaveModel, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        side = model.config.res
        frames = torch.randint(
            0, 256, (batch, side, side, 3), generator=generator, dtype=torch.uint8
        )
        return frames, torch.randn(batch, 1, 96, 64, generator=generator)

    return make


@pytest.fixture(scope="session")
def kept_traces() -> Iterator[None]:
    """From the first export of this process on, equal modules are traced once."""
    from save_deploy.export import graph
    from tests.export.traced import traced_once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "graph_from_module", traced_once(graph.graph_from_module))
        yield


def exported_once(factory: pytest.TempPathFactory, name: str, **options: Any) -> Path:
    """A bundle that all test processes of a run share; the first one to want it makes it."""
    from save_deploy.export.export import export
    from save_deploy.export.options import ExportOptions

    base = factory.getbasetemp()
    place = (base.parent if worker else base) / "bundles"
    place.mkdir(exist_ok=True)
    with (place / f"{name}.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / name).exists():
            patch.setenv("SAVE_DEPLOY_CACHE", str(factory.mktemp("cache")))
            export(ExportOptions(out=place / name, rounds=3, **options))
    return place / name


@pytest.fixture(scope="session")
def bundle(kept_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP16 bundle of the built-in checkpoint."""
    return exported_once(tmp_path_factory, "demo", precision="fp16", n_golden=4)


@pytest.fixture(scope="session")
def bundle_fp32(kept_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in FP32."""
    return exported_once(tmp_path_factory, "fp32", precision="fp32", n_golden=2)


@pytest.fixture(scope="session")
def bundle_int8(kept_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 bundle of it at the smallest resolution, every product of its encoder in 8 bits."""
    from save_deploy.export.options import CalibrationOptions

    pairs = CalibrationOptions(pairs=32)
    folder = exported_once(
        tmp_path_factory, "int8", precision="int8", res=224, n_golden=2, calibration=pairs
    )
    report = (folder / "report.md").read_text()
    assert "54 of 54 MatMuls ran INT8 kernels" in report
    return folder


def has_stamps() -> bool:
    from save_deploy.data.stamps import find_package
    from save_deploy.errors import DataError

    try:
        find_package()
    except DataError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the cure, what this machine cannot run."""
    skip_stamps = pytest.mark.skip(
        reason="not installed: apt-get install tuxpaint-stamps-default tuxpaint-data"
    )
    skip_gpu = pytest.mark.skip(reason="no NVIDIA GPU")
    stamps, gpu = has_stamps(), bool(read_nvidia().gpus)
    for item in items:
        if "stamps" in item.keywords and not stamps:
            item.add_marker(skip_stamps)
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(skip_gpu)
