"""The C++ runtime for tests: where it is built, its program, and its library through ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtime" / "cpp"
BUILD = ROOT / "build" / "cpp"
# what Python's tests use
RELEASE = ("save_runtime", "save_media", "save-infer", "refusals", "pixels")
TESTS = ("test_core", "test_manifest", "mutate", "test_bundle", "test_threads", "test_header")
INSTALL = (
    "apt-get install cmake g++ nlohmann-json3-dev libpng-dev libjpeg-dev libsndfile1-dev, and "
    'pip install "save-deploy[openvino]"'
)
WINDOW = 16_000


def cmake(*args: str | Path, timeout: int = 1800) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cmake", *map(str, args)], capture_output=True, text=True, timeout=timeout, check=False
    )


def openvino_dir() -> str:
    from openvino.utils import get_cmake_path

    return f"-DOpenVINO_DIR={get_cmake_path()}"


def infer(build: Path, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """save-infer; options: of subprocess.run."""
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        [build / "save-infer", *map(str, args)], text=True, timeout=120, check=False, **given
    )


class _Frame(ctypes.Structure):
    _fields_ = (
        ("rgb", ctypes.c_void_p),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("row_bytes", ctypes.c_size_t),
    )


class _Sound(ctypes.Structure):
    _fields_ = (
        ("samples", ctypes.c_void_p),
        ("n_frames", ctypes.c_size_t),
        ("n_channels", ctypes.c_int),
        ("rate_hz", ctypes.c_int),
    )


class Library:
    """libsave_runtime: what the network sees and hears, without a bundle."""

    def __init__(self, build: Path) -> None:
        self._c = ctypes.CDLL(str(build / "libsave_runtime.so"))
        self._c.save_last_error.restype = ctypes.c_char_p
        self._c.save_version.restype = ctypes.c_char_p
        self._c.save_backends.restype = ctypes.c_char_p
        self._c.save_make_waveform_at.argtypes = (
            ctypes.c_void_p, ctypes.c_double, ctypes.c_void_p,
        )  # fmt: skip

    @property
    def version(self) -> str:
        return str(self._c.save_version().decode())

    @property
    def backends(self) -> list[str]:
        """Compiled in, the preferred CPU backend first."""
        return str(self._c.save_backends().decode()).split()

    def image(self, frame: NDArray[np.uint8], res: int) -> NDArray[np.uint8]:
        frame, found = np.ascontiguousarray(frame), np.empty((res, res, 3), np.uint8)
        given = _Frame(frame.ctypes.data, frame.shape[1], frame.shape[0], 0)
        self._check(self._c.save_make_image(ctypes.byref(given), res, _pointer(found)))
        return found

    def second(self, samples: NDArray[np.float32], rate_hz: int, index: int) -> NDArray[np.float32]:
        """samples (n,channels), as AVSBench counts seconds."""
        given, found = _sound(samples, rate_hz), np.empty(WINDOW, np.float32)
        self._check(self._c.save_make_waveform(ctypes.byref(given), index, _pointer(found)))
        return found

    def second_at(
        self, samples: NDArray[np.float32], rate_hz: int, start_s: float
    ) -> NDArray[np.float32]:
        """samples (n,channels), from a time on."""
        given, found = _sound(samples, rate_hz), np.empty(WINDOW, np.float32)
        self._check(self._c.save_make_waveform_at(ctypes.byref(given), start_s, _pointer(found)))
        return found

    def _check(self, status: int) -> None:
        assert status == 0, self._c.save_last_error().decode()


def _sound(samples: NDArray[np.float32], rate_hz: int) -> _Sound:
    assert samples.flags.c_contiguous and samples.dtype == np.float32
    return _Sound(samples.ctypes.data, samples.shape[0], samples.shape[1], rate_hz)


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
