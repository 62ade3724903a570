"""Shared fixtures: small seeded models with non-trivial biases, norms and position tables."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Cores of its own, before any library counts them: threads of two tests would wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    own = cores[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, own or cores)
# Ignored as under nohup: programs that tests start and interrupt would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import pytest
import torch
import torch.onnx
from torch import nn

from save_deploy.config import SaveConfig
from save_deploy.files import new_folder
from save_deploy.libraries import ENV_ONNXRUNTIME
from save_deploy.machine import cpu_name, read_nvidia, versions
from save_deploy.model.save import SaveModel
from save_deploy.runtime.compare import others
from tests.child import kept_traces

# Tests import both libraries themselves: without their telemetry, as the product does.
os.environ.setdefault(ENV_ONNXRUNTIME, "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

CACHE = kept_traces.share_with_children()
if not hasattr(torch.onnx.export, "__wrapped__"):  # else this process is a child of a test
    kept_traces.install(torch.onnx)

ROOT = Path(__file__).parents[1]
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


SMALLEST: dict[str, Any] = dict(res=224, depth=2, global_blocks=(1,), window_size=14)


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


real_read_cpu = others.read_cpu


@pytest.fixture(autouse=True, scope="session")
def alone_on_the_machine() -> Iterator[None]:
    """Tests run side by side: timings in them are not withheld for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(others, "read_cpu", lambda: None)
        yield


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Handlers of the command line for interrupts do not outlive a test that runs it here."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {sent: signal.getsignal(sent) for sent in signals}
    yield
    for sent, handler in before.items():
        signal.signal(sent, handler)


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


@contextmanager
def made_once(name: str) -> Iterator[Path]:
    """A folder of the cache, locked: the first process that wants its content makes it there."""
    place = CACHE / "made" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place
        if place.exists():
            os.utime(place)


@functools.cache
def versions_hash() -> str:
    """Hash of the versions of the libraries and the CPU that a bundle records."""
    return kept_traces.code_hash([], f"{versions()} {cpu_name()}".encode())[:16]


@functools.cache
def product_hash() -> str:
    """Hash of the product's Python files, its checkpoint, and the versions."""
    from save_deploy.checkpoints import builtin_path

    folders = ("save_deploy", "export", "calibration", "runtime")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    return kept_traces.code_hash([*files, builtin_path()], versions_hash().encode())[:16]


def exported_once(name: str, **options: Any) -> Path:
    """A bundle that all processes and runs of the tests share until the product's code changes."""
    from save_deploy.export.export import export
    from save_deploy.export.options import ExportOptions

    with made_once(f"{product_hash()}/{name}") as place, pytest.MonkeyPatch.context() as patch:
        if not place.exists():
            with tempfile.TemporaryDirectory() as cache:
                patch.setenv("SAVE_DEPLOY_CACHE", cache)
                export(ExportOptions(out=place, rounds=3, **options))
    return place


def pytest_sessionstart(session: pytest.Session) -> None:
    """What no run has wanted for a week goes, and what was kept for many states of the code."""
    if worker:
        return
    now = time.time()
    for pattern, most in (("traces/*.onnx", 100), ("made/*", 10)):
        found = sorted(CACHE.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
        for rank, path in enumerate(found):
            days = (now - path.stat().st_mtime) / 86_400
            if days > 7 or (rank >= most and days > 0.25):  # younger ones may be in use
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """An FP16 bundle of the built-in checkpoint: one of two exports of vit_t in all tests."""
    return exported_once("demo", precision="fp16", n_golden=4)


@pytest.fixture(scope="session")
def bundle_int8() -> Path:
    """The other one: INT8 at the smallest resolution, every product of its encoder quantized."""
    from save_deploy.export.options import CalibrationOptions

    pairs = CalibrationOptions(pairs=32)
    folder = exported_once("int8", precision="int8", res=224, n_golden=2, calibration=pairs)
    report = (folder / "report.md").read_text()
    assert "54 of 54 MatMuls ran INT8 kernels" in report
    return folder


@functools.cache
def tiny_file() -> Path:
    """A checkpoint at 224 px that is exported in seconds: two blocks, random weights.

    Its masks say little: an INT8 export of it needs min_agreement=0.
    """
    from save_deploy.checkpoints import save_checkpoint

    with made_once(f"{product_hash()}/tiny") as place:
        if not place.exists():
            with new_folder(place) as folder:
                save_checkpoint(folder / "tiny.safetensors", make_tiny(**SMALLEST))
    return place / "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    return tiny_file()


@pytest.fixture(scope="session")
def bundle_fp32() -> Path:
    """An FP32 bundle of the tiny checkpoint."""
    return exported_once(
        "small", checkpoint=tiny_file(), precision="fp32", res=224, n_golden=2, threads=1
    )


@pytest.fixture(scope="session")
def bundle_batches() -> Path:
    """The same with graphs for one, two and four frames a call."""
    return exported_once(
        "batches", checkpoint=tiny_file(), precision="fp32", res=224, n_golden=2, threads=1,
        more_batches=(2, 4),
    )  # fmt: skip


def has_stamps() -> bool:
    from save_deploy.data.stamps import find_package
    from save_deploy.errors import DataError

    try:
        find_package()
    except DataError:
        return False
    return True


# Fixtures that export a model or build the C++ runtime.
HEAVY = {
    "bundle", "bundle_int8", "bundle_fp32", "bundle_batches", "other", "small", "found", "build",
    "built", "prepared", "files", "results",
}  # fmt: skip


def module_fixtures(item: pytest.Item) -> bool:
    """Whether tests of its file share what takes time to make."""
    made = getattr(item, "_fixtureinfo", None)
    defined = made.name2fixturedefs.values() if made else ()
    return any(d[-1].scope in ("module", "package", "class") for d in defined if d)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the cure, what this machine cannot run; share the rest out over the workers.

    Tests with fixtures of their module go to one worker, all others to whichever is free; long ones
    come first.
    """
    skip_stamps = pytest.mark.skip(
        reason="not installed: apt-get install tuxpaint-stamps-default tuxpaint-data"
    )
    skip_gpu = pytest.mark.skip(reason="no NVIDIA GPU")
    stamps = has_stamps()
    gpu = bool(read_nvidia().gpus) or os.environ.get("SAVE_GPU_DRY") == "1"  # see tests/gpu/tree.py
    for item in items:
        if "stamps" in item.keywords and not stamps:
            item.add_marker(skip_stamps)
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(skip_gpu)
        if HEAVY & set(getattr(item, "fixturenames", ())):
            item.add_marker("heavy")
        if item.config.pluginmanager.hasplugin("xdist") and module_fixtures(item):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
    items.sort(key=_order)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail where pytest-xdist ignores groups: fixtures of a module would be made twice."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if session.config.getoption("loadgroup", False) and grouped and "@" not in grouped[0].nodeid:
        raise pytest.UsageError("pytest-xdist ignores xdist_group: pip install 'pytest<9.2'")


def _order(item: pytest.Item) -> int:
    """The C++ builds first, then what is slow, all else in the order of the files."""
    if item.get_closest_marker("first"):
        return 0
    return 1 if {"slow", "thorough"} & set(item.keywords) else 2
