"""What TensorRT-RTX does differently, and that every name the session uses exists in the libraries.

Nothing here ran on a GPU.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.errors import BackendError
from save_deploy.machine import read_nvidia
from save_deploy.runtime.engine_check import last_error_logger
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.tensorrt import _DTYPES, TensorRtSession
from tests.runtime.engines import HAS_RTX, built_engine
from tests.runtime.fake_gpu import (
    SPEC,
    FakeContext,
    FakeCudaRuntime,
    FakeEngine,
    FakeRuntimeCache,
    FakeRuntimeConfig,
    Fakes,
    X,
    infer,
    opened,
)


def test_rtx_captures_itself_and_keeps_its_kernels(rtx: Fakes, plan: Path, tmp_path: Path) -> None:
    trt, cuda = rtx
    kept = tmp_path / "runtime.cache"
    with opened(plan, "tensorrt_rtx", cache_dir=tmp_path) as session:
        np.testing.assert_array_equal(infer(session), 2 * X)
        assert trt.config.cuda_graph_strategy == "whole" and trt.configs == [trt.config]
        assert "cudaStreamBeginCapture" not in cuda.events and "cache read" not in cuda.events
        assert kept.read_bytes() == b"compiled"  # already after the first run
        trt.config.cache.data = b"compiled more"
    assert kept.read_bytes() == b"compiled more"
    assert [path.name for path in tmp_path.iterdir() if "cache" in path.name] == ["runtime.cache"]
    with opened(plan, "tensorrt_rtx", cache_dir=tmp_path) as session:  # of another GPU: refused
        infer(session)
    assert cuda.events.count("cache read") == 1 and kept.read_bytes() == b"compiled"
    with opened(plan, "tensorrt_rtx", cuda_graph=False):
        assert trt.config.cuda_graph_strategy is None


def test_a_cache_that_cannot_be_written_is_no_obstacle(rtx: Fakes, plan: Path) -> None:
    with opened(plan, "tensorrt_rtx", cache_dir=Path("/proc/nowhere")) as session:
        np.testing.assert_array_equal(infer(session), 2 * X)


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, RuntimeError("lost device"), b""])
def test_a_cache_that_gives_nothing(rtx: Fakes, plan: Path, tmp_path: Path, given: Any) -> None:
    with opened(plan, "tensorrt_rtx", cache_dir=tmp_path) as session:
        infer(session)
        rtx[0].config.cache.data = given
    gc.collect()
    assert rtx[1].memory == {} and rtx[1].events[-1] == "engine gone"
    assert (tmp_path / "runtime.cache").read_bytes() == b"compiled"


def test_rtx_asks_before_it_loads(rtx: Fakes, plan: Path) -> None:
    rtx[0].validity, rtx[0].diagnostics = "INVALID", 5
    with pytest.raises(BackendError, match="VERSION_MISMATCH, OLD_CUDA_DRIVER"):
        opened(plan, "tensorrt_rtx")
    assert "deserialize" not in rtx[1].events
    rtx[0].validity = "SUBOPTIMAL"
    opened(plan, "tensorrt_rtx").close()


# --- arrays on the device ---


def test_cuda_bindings_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match=r"not installed(.|\n)*save-deploy\[cuda\]"):
        Cuda()


def test_names_exist_in_the_real_bindings() -> None:
    """What the fake offers is what cuda-bindings has: a misspelt call would pass the fake alone."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    names = [n for n in vars(FakeCudaRuntime) if n.startswith("cuda")]
    assert len(names) > 15 and not [n for n in names if not hasattr(runtime, n)]
    fake = FakeCudaRuntime()
    for enum in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        for member in vars(getattr(fake, enum)):
            assert hasattr(getattr(runtime, enum), member)


FAKES = {
    "IExecutionContext": FakeContext,
    "ICudaEngine": FakeEngine,
    "IRuntimeConfig": FakeRuntimeConfig,
    "IRuntimeCache": FakeRuntimeCache,
}
REFIT = {"Refitter": ["refit_cuda_engine"], "OnnxParserRefitter": ["refit_from_file"]}  # fmt: skip


@pytest.mark.parametrize("version", ["10.16", "11.4", "rtx1.7"])
def test_names_exist_in_three_libraries(version: str) -> None:
    """tensorrt_names.json: names read from the libraries' Python modules."""
    names = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())[version]
    for real, fake in FAKES.items():
        if real in ("IRuntimeConfig", "IRuntimeCache") and version != "rtx1.7":
            continue
        own = {n for n in vars(fake) if not n.startswith("_") and n not in ("cache", "trt")}
        assert own and own <= set(names[real]), (real, own - set(names[real]))
    for real, used in REFIT.items():
        assert set(used) <= set(names[real])
    assert {"deserialize_cuda_engine", "engine_host_code_allowed"} <= set(names["Runtime"])
    assert ("get_engine_validity" in names["Runtime"]) == (version == "rtx1.7")
    assert set(_DTYPES) <= set(names["DataType"])
    assert {"INPUT", "OUTPUT"} <= set(names["TensorIOMode"])


def test_names_exist_in_the_installed_library() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for real, fake in FAKES.items():
        own = {n for n in vars(fake) if not n.startswith("_") and n not in ("cache", "trt")}
        assert not [n for n in own if not hasattr(getattr(trt, real), n)], real
    for real, used in REFIT.items():
        assert all(hasattr(getattr(trt, real), name) for name in used), real
    assert hasattr(trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")


@pytest.mark.skipif(not HAS_RTX or bool(read_nvidia().gpus), reason="needs RTX and no GPU")
def test_a_real_engine_without_a_gpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The real library, up to the device: one error with its last words, nothing on the terminal."""
    last_error_logger.cache_clear()
    path = tmp_path / "model.rtx.plan"
    path.write_bytes(built_engine())
    with pytest.raises(BackendError, match=r"refuses model.rtx.plan(.|\n)*CUDA") as caught:
        TensorRtSession(path, SPEC, library="tensorrt_rtx")
    assert caught.value.exit_code == 3
    assert capfd.readouterr() == ("", "")
