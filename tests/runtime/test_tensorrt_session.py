"""The session on engines, against fakes of CUDA and TensorRT: calls, addresses, errors, release.

Nothing here ran on a GPU.
"""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from save_deploy.errors import BackendError, BundleError, DataError
from save_deploy.runtime.session.tensorrt import TensorRtSession
from tests.runtime.fake_gpu import (
    Fakes,
    X,
    infer,
    opened,
)


def test_first_run_is_plain_then_captured_once(full: Fakes, plan: Path) -> None:
    """Copy in, run, wait, capture; afterwards copy in, launch, copy out, wait."""
    _, cuda = full
    with opened(plan) as session:
        np.testing.assert_array_equal(infer(session), 2 * X)
        assert cuda.events == [
            "cudaSetDevice", "deserialize", "cudaSetDevice", "cudaStreamCreateWithFlags",
            "cudaMallocHost", "cudaMalloc", "cudaMallocHost", "cudaMalloc", "context",
            "cudaMemcpyAsync HostToDevice", "execute", "cudaStreamSynchronize",
            "cudaStreamBeginCapture", "execute", "cudaStreamEndCapture", "cudaGraphInstantiate",
            "cudaGraphDestroy", "cudaMemcpyAsync DeviceToHost", "cudaStreamSynchronize",
        ]  # fmt: skip
        for i in range(3):
            cuda.events.clear()
            np.testing.assert_array_equal(infer(session, i * X), 2 * i * X)
            assert cuda.events == [
                "cudaMemcpyAsync HostToDevice", "cudaGraphLaunch",
                "cudaMemcpyAsync DeviceToHost", "cudaStreamSynchronize",
            ]  # fmt: skip


def test_without_a_graph(full: Fakes, plan: Path) -> None:
    with opened(plan, cuda_graph=False) as session:
        assert [infer(session, i * X)[0, 0] for i in range(3)] == [0, 2, 4]
    assert full[1].events.count("execute") == 3 and "cudaGraphLaunch" not in full[1].events


def test_outputs_belong_to_the_caller(full: Fakes, plan: Path) -> None:
    with opened(plan) as session:
        first = infer(session)
        kept = first.copy()
        infer(session, np.asfortranarray(5 * X))  # any memory layout
        np.testing.assert_array_equal(first, kept)
        with pytest.raises(DataError, match="wrong input x"):
            session.infer({"x": X.astype(np.float64)})


@pytest.mark.slow
def test_release_is_in_reverse_and_once(full: Fakes, plan: Path) -> None:
    """Graph, context, buffers, stream, engine; a second close and a late call do no harm."""
    _, cuda = full
    session = opened(plan)
    infer(session)
    cuda.events.clear()
    session.close()
    gc.collect()
    assert cuda.events == [
        "cudaStreamSynchronize", "cudaGraphExecDestroy", "context gone", "cudaFree",
        "cudaFreeHost", "cudaFree", "cudaFreeHost", "cudaStreamDestroy", "engine gone",
    ]  # fmt: skip
    assert cuda.memory == {}
    session.close()
    assert len(cuda.events) == 9
    with pytest.raises(BackendError, match="closed"):
        infer(session)
    assert cuda.memory == {}


@pytest.mark.parametrize(
    "call",
    ["cudaSetDevice", "cudaStreamCreateWithFlags", "cudaMallocHost", "cudaMalloc",
     "cudaMemcpyAsync HostToDevice", "cudaMemcpyAsync DeviceToHost", "cudaStreamSynchronize"],
)  # fmt: skip
def test_every_cuda_call_that_fails_is_an_error(full: Fakes, plan: Path, call: str) -> None:
    """Named with CUDA's own words; nothing stays allocated after close."""
    _, cuda = full
    cuda.failing[call] = 2
    session: TensorRtSession | None = None
    with pytest.raises(BackendError, match=rf"{call.split()[0]}: out of memory \(2\)") as caught:
        session = opened(plan)
        infer(session)
    assert caught.value.exit_code == 3
    cuda.failing.clear()
    if session is not None:
        session.close()
    assert cuda.memory == {}


@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "execute"]
)
def test_capture_that_fails_costs_only_speed(
    full: Fakes, plan: Path, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged once; the plain result is right, also of later runs, and nothing stays allocated."""
    trt, cuda = full
    cuda.failing[call] = 2
    if call == "execute":
        trt.refused.add("execute while capturing")
    with opened(plan) as session:
        for i in range(3):
            np.testing.assert_array_equal(infer(session, i * X), 2 * i * X)
        assert cuda.events.count("cudaStreamBeginCapture") == 1
        assert "cudaGraphLaunch" not in cuda.events
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "no CUDA graph" in record.getMessage()
    assert cuda.memory == {} and cuda.capturing == {}
    made = cuda.events.count("cudaGraphInstantiate") if call == "execute" else 0
    assert cuda.events.count("cudaGraphExecDestroy") == made


@pytest.mark.slow
def test_close_frees_everything_whatever_fails(full: Fakes, plan: Path) -> None:
    """A stream that cannot be waited for, in one of two threads: the rest is freed, then it is told."""
    _, cuda = full
    session = opened(plan)
    infer(session)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(infer, session).result()
        cuda.failing["cudaStreamSynchronize"] = 700
        cuda.events.clear()
        with pytest.raises(BackendError, match=r"cudaStreamSynchronize: unknown error \(700\)"):
            session.close()
    gc.collect()
    assert cuda.memory == {} and cuda.events.count("cudaStreamDestroy") == 2
    assert cuda.events.count("context gone") == 2 and cuda.events[-1] == "engine gone"
    session.close()


@pytest.mark.slow
def test_a_dropped_session_is_freed(
    full: Fakes, plan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, cuda = full
    session = opened(plan)
    infer(session)
    del session
    gc.collect()
    assert cuda.memory == {} and cuda.events[-1] == "engine gone"
    session = opened(plan)
    infer(session)
    cuda.failing["cudaFree"] = 700  # nobody could catch it
    del session
    gc.collect()
    assert "not freed cleanly" in caplog.text and cuda.memory == {}


def test_what_an_ended_thread_used_serves_the_next(full: Fakes, plan: Path) -> None:
    """A hundred threads one after the other: the buffers and the graph of one."""
    trt, cuda = full
    with opened(plan) as session:
        found: list[np.ndarray] = []
        for i in range(100):
            work = lambda i: found.append(infer(session, i * X))
            thread = threading.Thread(target=work, args=(i,))
            thread.start()
            thread.join(timeout=30)
            np.testing.assert_array_equal(found[i], 2 * i * X)
        assert len(cuda.memory) == 4 and len(trt.configs) == 1
        assert cuda.events.count("cudaGraphInstantiate") == 1
        infer(session)  # a living thread keeps its own, beside one that starts now
        with ThreadPoolExecutor(1) as pool:
            pool.submit(infer, session).result()
            assert len(cuda.memory) == 8
    assert cuda.memory == {}


def test_weights_of_a_stripped_engine(full: Fakes, plan: Path) -> None:
    """Taken from the ONNX file before anything else; a refusal is an error with the way out."""
    trt, cuda = full
    with opened(plan, refit_from=Path("model.onnx")) as session:
        infer(session)
    at = cuda.events.index
    assert at("deserialize") < at("weights of model.onnx") < at("refit") < at("context")
    for refused in ("weights", "refit"):
        trt.refused = {refused}
        with pytest.raises(BackendError, match=r"weights from model.onnx(.|\n)*--strip-weights"):
            opened(plan, refit_from=Path("model.onnx"))
    trt.refused, cuda.events[:] = set(), []
    opened(plan).close()
    assert "refit" not in cuda.events


def test_launch_that_fails(full: Fakes, plan: Path) -> None:
    with opened(plan) as session:
        infer(session)
        full[1].failing["cudaGraphLaunch"] = 700
        with pytest.raises(BackendError, match="cudaGraphLaunch"):
            infer(session)
        full[1].failing.clear()
        np.testing.assert_array_equal(infer(session), 2 * X)


@pytest.mark.slow
@pytest.mark.parametrize(("refused", "match"), [
    ("engine", "cannot load model.plan(.|\n)*Serialization assertion failed\n"),
    ("context", "no execution context"),
    ("x", "address of x"),
    ("execute", "refuses: execution"),
])  # fmt: skip
def test_what_tensorrt_refuses(full: Fakes, plan: Path, refused: str, match: str) -> None:
    """None and False are no exceptions of TensorRT; they are ours, with the logger's last line."""
    full[0].refused.add(refused)
    with pytest.raises(BackendError, match=match):
        infer(opened(plan))
    gc.collect()
    if refused != "execute":
        assert full[1].memory == {}


def test_engine_of_another_interface(full: Fakes, plan: Path) -> None:
    full[0].dtype = "HALF"
    with pytest.raises(BundleError, match=r"other inputs and outputs(.|\n)*float16"):
        opened(plan)


def test_every_thread_has_its_own_context(full: Fakes, plan: Path) -> None:
    """One engine, a context and buffers per thread, the device chosen in each."""
    trt, cuda = full
    barrier = threading.Barrier(3)

    def work(i: int) -> list[float]:
        barrier.wait(timeout=30)
        return [float(infer(session, (10 * i + k) * X)[0, 0]) for k in range(20)]

    with opened(plan, device=1) as session:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(work, range(3)))
        assert found == [[2.0 * (10 * i + k) for k in range(20)] for i in range(3)]
        assert len(trt.configs) == 3 and cuda.events.count("deserialize") == 1
        assert cuda.events.count("cudaGraphInstantiate") == 3
        assert set(cuda.devices.values()) == {1} and len(cuda.devices) == 4
        assert len(cuda.memory) == 12
    assert cuda.memory == {}  # freed by the thread that closes


def test_version_compatible_engines_may_bring_their_runtime(full: Fakes, plan: Path) -> None:
    opened(plan, host_code=True).close()
    opened(plan).close()
    assert [runtime.engine_host_code_allowed for runtime in full[0].runtimes] == [True, False]


# --- TensorRT-RTX ---
