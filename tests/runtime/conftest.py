"""Fixtures of the runtime's tests."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from save_deploy.bundle import FileRecord, Manifest, sha256_of
from save_deploy.runtime.compare.options import Budget
from save_deploy.runtime.compare.run import Comparison, run_comparison
from save_deploy.runtime.engine_check import last_error_logger
from tests.calibration.samples import write_s4
from tests.runtime.compare import options
from tests.runtime.cpp import BUILD, INSTALL, RELEASE, SOURCE, TESTS, cmake, openvino_dir
from tests.runtime.fake_gpu import Fakes, install


def built(preset: str, folder: Path, *targets: str) -> Path:
    """The C++ runtime, built by whichever test process wants it first, for the others too.

    Skipped, with what to install, where something is missing.
    """
    pytest.importorskip("openvino", reason=INSTALL)
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip(INSTALL)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configured = cmake("-S", SOURCE, "--preset", preset, openvino_dir())
        if configured.returncode != 0 and "apt-get install" in configured.stderr:
            pytest.skip(f"{' '.join(configured.stderr.split())}")
        assert configured.returncode == 0, configured.stderr
        done = cmake("--build", folder, "-j", "2", "--target", *targets)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def build() -> Path:
    """build/cpp with warnings as errors: the library and save-infer as users have them."""
    return built("ci", BUILD, *RELEASE)


@pytest.fixture(scope="session")
def sanitized() -> Path:
    """build/cpp-sanitize: its own tests, under AddressSanitizer and UBSan."""
    return built("sanitize", BUILD.with_name("cpp-sanitize"), *TESTS)


@pytest.fixture(scope="session")
def thread_sanitized() -> Path:
    """build/cpp-threads: its test of threads, under ThreadSanitizer."""
    return built("threads", BUILD.with_name("cpp-threads"), "test_threads")


@pytest.fixture(scope="module")
def other(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of model.onnx changed, hashes made right again: intact, and wrong."""
    folder = tmp_path_factory.mktemp("altered") / "altered"
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim >= 2 and np.issubdtype(values.dtype, np.floating) and values.size > 1000:
            noise = np.random.default_rng(0).normal(size=values.shape) * values.std()
            changed = (values + 0.8 * noise).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, folder / "model.onnx")
    manifest = Manifest.read(folder)
    path = folder / "model.onnx"
    manifest.files["model.onnx"] = FileRecord(sha256_of(path), path.stat().st_size)
    manifest.write(folder)
    return folder


@pytest.fixture(scope="module")
def small(bundle_fp32: Path) -> Path:
    """A bundle of another model at another resolution, in FP32."""
    return bundle_fp32


@pytest.fixture(scope="module")
def s4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_s4(tmp_path_factory.mktemp("s4"), {"dog": 1}, test=2)


@pytest.fixture(scope="module")
def found(bundle: Path, other: Path, s4: Path) -> Comparison:
    """Two bundles, two datasets of two clips, the default backend."""
    asked = options(
        (bundle, other), data=("scenes", str(s4)), clips=2, frames=3,
        budget=Budget(max_drop=0.5, min_agreement=0.9),
    )  # fmt: skip
    return run_comparison(asked)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    yield install(monkeypatch, "tensorrt")
    last_error_logger.cache_clear()


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    yield install(monkeypatch, "tensorrt_rtx")
    last_error_logger.cache_clear()


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(b"an engine")
    return path
