"""The session on engines, against fakes of CUDA and TensorRT: calls, addresses, errors, release.

Nothing here ran on a GPU.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.errors import BackendError, BundleError, DataError
from save_deploy.runtime.preflight.engine import last_error_logger
from save_deploy.runtime.preflight.nvidia import read_nvidia
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.device import DeviceArray, device_input, read_capsule
from save_deploy.runtime.session.tensorrt import _DTYPES, TensorRtSession
from tests.runtime.engines import HAS_RTX, built_engine
from tests.runtime.fake_gpu import (
    SPEC,
    FakeContext,
    FakeCudaRuntime,
    FakeEngine,
    FakeRuntimeCache,
    FakeRuntimeConfig,
    FakeTensorRt,
    install,
)

X = np.array([[1, 2, 3, 4]], np.float32)
Fakes = tuple[FakeTensorRt, FakeCudaRuntime]


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


def opened(path: Path, library: str = "tensorrt", **options: Any) -> TensorRtSession:
    return TensorRtSession(path, SPEC, library=library, **options)


def infer(session: TensorRtSession, x: np.ndarray = X) -> np.ndarray:
    return session.infer({"x": x})["y"]


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
    opened(plan, version_compatible=True).close()
    opened(plan).close()
    assert [runtime.engine_host_code_allowed for runtime in full[0].runtimes] == [True, False]


# --- TensorRT-RTX ---


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


class FakeDeviceTensor:
    """Has __cuda_array_interface__; its memory is the fake's."""

    def __init__(self, array: np.ndarray, **changes: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "version": 3,
            "data": (array.ctypes.data, False), "strides": None, **changes,
        }  # fmt: skip


def test_device_arrays_in_and_out(full: Fakes, plan: Path) -> None:
    _, cuda = full
    with opened(plan) as session:
        infer(session)
        cuda.events.clear()
        y = session.infer_device({"x": FakeDeviceTensor(3 * X)})["y"]
        assert cuda.events == [
            "cudaStreamSynchronize",  # of the producer
            "cudaMemcpyAsync DeviceToDevice", "cudaGraphLaunch", "cudaStreamSynchronize",
        ]  # fmt: skip
        interface = y.__cuda_array_interface__
        assert (interface["shape"], interface["typestr"]) == ((1, 4), "<f4")
        assert interface["data"] == (y.pointer, False) and y.pointer in cuda.memory
        np.testing.assert_array_equal(np.frombuffer(cuda.memory[y.pointer], "<f4"), 6 * X[0])
        np.testing.assert_array_equal(infer(session), 2 * X)


@pytest.mark.parametrize(("given", "match"), [
    (FakeDeviceTensor(X.astype(np.float64)), "float64"),
    (FakeDeviceTensor(X[:, :3].copy()), r"\(1, 3\)"),
    (FakeDeviceTensor(X, strides=(16, 8)), "not contiguous"),
    (X, "not on a GPU"),
    ([1, 2], "list, no array on a GPU"),
])  # fmt: skip
def test_wrong_device_arrays(full: Fakes, plan: Path, given: Any, match: str) -> None:
    with opened(plan) as session:
        with pytest.raises(DataError, match=match):
            session.infer_device({"x": given})
        with pytest.raises(DataError, match="wrong input names"):
            session.infer_device({"z": given})


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float32", "bool"])
def test_reading_dlpack(dtype: str) -> None:
    """numpy's own capsule, an independent producer: address, shape and dtype; a slice is refused."""
    array = np.zeros((2, 3, 4), dtype)
    found = read_capsule(array.__dlpack__())
    assert (found.shape, found.dtype) == ((2, 3, 4), dtype)
    assert found.pointer == array.ctypes.data
    assert read_capsule(array[1:].__dlpack__()).pointer == array[1:].ctypes.data
    with pytest.raises(DataError, match="not contiguous"):
        read_capsule(array[:, :2].__dlpack__())


class FakeDlpackProducer:
    """An array said to be on a GPU; remembers the stream it was asked to finish on."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.streams = array, list[Any]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()


def test_dlpack_producers_are_told_the_stream(full: Fakes, plan: Path) -> None:
    producer = FakeDlpackProducer(X)
    with opened(plan) as session:
        y = session.infer_device({"x": producer})["y"]
        np.testing.assert_array_equal(np.frombuffer(full[1].memory[y.pointer], "<f4"), 2 * X[0])
    assert len(producer.streams) == 1 and producer.streams[0] > 1000  # ours
    found = device_input({"x": producer}, SPEC.inputs[0], Cuda())
    assert isinstance(found, DeviceArray) and producer.streams[1] == 1  # the legacy stream
    assert full[1].events[-1] == "cudaStreamSynchronize"


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
