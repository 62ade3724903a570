"""C++ sessions of GPUs on a machine without one: their sources compile, and their calls come in order.

Headers of ONNX Runtime and TensorRT are on no package index, so `headers/` declares the names that
are used; SAVE_ONNXRUNTIME_INCLUDE and SAVE_TENSORRT_INCLUDE name folders with the real ones. CUDA's
come with triton.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.cpp import SOURCE

HEADERS = Path(__file__).parent / "headers"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
COMPILER = shutil.which("g++") or shutil.which("c++")
pytestmark = pytest.mark.slow
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: apt-get install g++")


def cuda_include() -> Path:
    """CUDA's headers as triton brings them, which torch needs on Linux."""
    found = importlib.util.find_spec("triton")
    place = (
        Path(found.origin).parent / "backends/nvidia/include" if found and found.origin else None
    )
    if place is None or not (place / "cuda_runtime_api.h").is_file():
        pytest.skip("no CUDA headers: they come with triton")
    return place


def compiled(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert COMPILER is not None
    includes = [f"-I{SOURCE / 'include'}", f"-I{SOURCE / 'src'}"]
    return subprocess.run(
        [COMPILER, "-std=c++17", *includes, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt_rtx"])
def test_tensorrt_source_compiles(rtx: bool) -> None:
    """Without a warning; with TensorRT-RTX also its runtime cache and its own CUDA graph."""
    real = os.environ.get("SAVE_TENSORRT_INCLUDE")
    headers = Path(real) if real and not rtx else HEADERS
    defined = ["-DTRT_MAJOR_RTX=1"] if rtx else []
    name = "tensorrt_rtx" if rtx else "tensorrt"
    done = compiled(
        "-fsyntax-only", *WARNINGS, *defined, f'-DSAVE_TENSORRT_NAME="{name}"', "-isystem", headers,
        "-isystem", cuda_include(), SOURCE / "src/session_tensorrt.cpp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@needs_compiler
@pytest.mark.parametrize("name", ["cuda_driver", "onnxruntime", "session_onnxruntime"])
def test_onnxruntime_sources_compile(name: str) -> None:
    headers = os.environ.get("SAVE_ONNXRUNTIME_INCLUDE", str(HEADERS))
    source = SOURCE / f"src/{name}.cpp"
    done = compiled("-fsyntax-only", *WARNINGS, "-isystem", headers, source)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with the session, a fake of ONNX Runtime, and a folder with a fake of the driver."""
    if COMPILER is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "driver").mkdir()
    cuda = folder / "driver/libcuda.so.1"
    done = compiled("-shared", "-fPIC", HEADERS / "fake_cuda.cpp", "-o", cuda)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ("cuda_driver", "onnxruntime", "session_onnxruntime", "error", "kept", "files", "npy",
             "output_file", "sha256", "session")  # fmt: skip
    sources = [SOURCE / f"src/{name}.cpp" for name in names]
    done = compiled(
        "-O0", "-I", HEADERS, HEADERS / "fake_onnxruntime.cpp", *sources, "-ldl", "-lpthread",
        "-o", folder / "program",
    )  # fmt: skip
    if "nlohmann/json.hpp" in done.stderr:
        pytest.skip("no nlohmann-json: apt-get install nlohmann-json3-dev")
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "graph.onnx").write_bytes(b"a graph")
    return folder


def ran(folder: Path, device: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """driver="": no driver is found."""
    driver = environment.pop("driver", str(folder / "driver"))
    return subprocess.run(
        [folder / "program", folder / "graph.onnx", str(device)],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": driver, **environment},
    )  # fmt: skip


def test_calls_of_the_cuda_session(fakes: Path) -> None:
    """No node elsewhere, no TF32, a graph that is captured before the first answer, one buffer for each
    tensor, and values that travel both ways."""
    done = ran(fakes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "session.disable_cpu_ep_fallback=1", "device_id=0", "use_tf32=0", "enable_cuda_graph=1",
        "arena_extend_strategy=kSameAsRequested", "memory Cuda 0", "bind input x", "bind output y",
        "run 1", "opened onnxruntime_cuda",
        "run 2", "found 3 4 5 6", "run 3", "found 4 5 6 7", "session released",
    ]  # fmt: skip


def test_a_graph_that_cannot_be_captured(fakes: Path) -> None:
    """Opened anew without: the same answers but for the run that captured."""
    done = ran(fakes, FAKE_CAPTURE="fails")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [x for x in lines if x.startswith("enable_cuda_graph")] == [
        "enable_cuda_graph=1", "enable_cuda_graph=0",
    ]  # fmt: skip
    assert lines[-5:] == ["run 1", "found 2 3 4 5", "run 2", "found 3 4 5 6", "session released"]
    assert lines.count("session released") == 2


def test_no_driver_no_gpu_no_such_gpu(fakes: Path) -> None:
    """Exit 3 each, before ONNX Runtime is asked for anything; the second of two GPUs is one."""
    for done, words in (
        (ran(fakes, driver=""), "libcuda.so.1"),
        (ran(fakes, FAKE_GPUS="0"), "the driver sees no GPU"),
        (ran(fakes, device=1), "no such CUDA device"),
        (ran(fakes, device=-1), "no such CUDA device"),
    ):
        assert done.returncode == 3 and words in done.stderr and done.stdout == "", done
    second = ran(fakes, device=1, FAKE_GPUS="2")
    assert second.returncode == 0 and "device_id=1" in second.stdout
