"""Arrays of a device as inputs and outputs of a session, by DLPack, against fakes.

Nothing here ran on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.errors import DataError
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.device import DeviceArray, device_input, read_capsule
from tests.runtime.fake_gpu import (
    SPEC,
    Fakes,
    X,
    infer,
    opened,
)


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
