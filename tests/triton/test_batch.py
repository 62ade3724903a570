"""save_batch on the real tritonserver: requests of many clients, in the graphs with fixed batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.bundle import Manifest
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.triton.options import TritonOptions
from save_deploy.runtime.triton.remote import PROTOCOLS, Remote, tensors
from save_deploy.runtime.triton.repository import write_repository
from tests.triton.server import Server, running, triton_files

InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException
pytestmark = pytest.mark.thorough
GRAPHS = {1: "save_model", 2: "save_model_x2", 4: "save_model_x4"}
N = 8


@pytest.fixture(scope="module")
def server(bundle_batches: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("tritonclient.grpc")
    triton_files()
    folder = tmp_path_factory.mktemp("triton")
    write_repository(TritonOptions(bundle=bundle_batches, out=folder / "repo", threads=1))
    with running(folder / "repo", folder) as found:
        yield found


@pytest.fixture(scope="module")
def pipeline(bundle_batches: Path) -> Iterator[SavePipeline]:
    with load(bundle_batches, backend="onnxruntime", threads=1) as found:
        yield found


def frames(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8),
        "audio_embedding": rng.random((n, 128), dtype=np.float32),
    }


def part(inputs: dict[str, np.ndarray], first: int, last: int) -> dict[str, np.ndarray]:
    return {name: array[first:last] for name, array in inputs.items()}


def executed(server: Server) -> dict[int, int]:
    """Executions of every graph, by its batch: Triton's own statistics."""
    return {n: server.count("nv_inference_exec_count", name) for n, name in GRAPHS.items()}


def ask(remote: Remote, inputs: dict[str, np.ndarray], model: str = "save_batch") -> np.ndarray:
    return remote.infer(model, inputs, ["mask_logits"])["mask_logits"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_request_of_several_frames(server: Server, pipeline: SavePipeline, protocol: str) -> None:
    """Three frames are a call of two and a call of one."""
    inputs, before = frames(3), executed(server)
    with Remote(protocol, server.url(protocol)) as remote:
        found = ask(remote, inputs)
    np.testing.assert_array_equal(found[:, 0], pipeline.run(**named(inputs)))
    assert {n: executed(server)[n] - before[n] for n in GRAPHS} == {1: 1, 2: 1, 4: 0}


def named(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"images": inputs["image"], "audio_embedding": inputs["audio_embedding"]}


def test_a_request_is_that_of_save_model(server: Server) -> None:
    with Remote("grpc", server.grpc) as remote:
        one = frames(1)
        np.testing.assert_array_equal(ask(remote, one), ask(remote, one, "save_model"))


def test_clients_at_once(server: Server) -> None:
    """Eight clients for two seconds: the masks of a single client, in fewer executions than frames."""
    inputs = frames(N)
    with Remote("grpc", server.grpc) as single:
        alone = [ask(single, part(inputs, i, i + 1)) for i in range(N)]
    before, sent, right = executed(server), [0] * N, [0] * N
    until = time.monotonic() + 2

    def client(i: int) -> None:
        with Remote(PROTOCOLS[i % 2], server.url(PROTOCOLS[i % 2])) as remote:
            while time.monotonic() < until:
                sent[i] += 1
                found = ask(remote, part(inputs, i, i + 1))
                close = np.abs(found - alone[i]).max() < 1e-3
                right[i] += bool(close and ((found > 0) != (alone[i] > 0)).mean() < 1e-3)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(N)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran = {n: executed(server)[n] - before[n] for n in GRAPHS}
    assert sum(n * calls for n, calls in ran.items()) == sum(sent)
    assert right == sent and min(sent) > 0
    assert ran[4] > 0, ran


def test_a_bad_request_among_others(server: Server) -> None:
    """Its embedding is NaN: an error with our text, and the answer for everybody else."""
    inputs = frames(N)
    bad = {**part(inputs, 0, 1), "audio_embedding": np.full((1, 128), np.nan, np.float32)}
    with Remote("grpc", server.grpc) as remote:
        expected = [ask(remote, part(inputs, i, i + 1)) for i in range(1, 4)]
        given = [bad, *(part(inputs, i, i + 1) for i in range(1, 4))]
        answers = [Answer() for _ in given]
        for one, answer in zip(given, answers, strict=True):
            remote.client.async_infer("save_batch", tensors(remote.library, one), callback=answer)
        found: list[Any] = [answer.wait() for answer in answers]
        assert isinstance(found[0], InferenceServerException)
        assert found[0].status() == "StatusCode.INVALID_ARGUMENT" and "NaN" in found[0].message()
        for result, wanted in zip(found[1:], expected, strict=True):
            np.testing.assert_allclose(result.as_numpy("mask_logits"), wanted, atol=1e-3)
        with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
            remote.client.infer("save_batch", tensors(remote.library, frames(5)))
    assert server.alive


class Answer:
    """What came for one request."""

    def __init__(self) -> None:
        self.came = threading.Event()

    def __call__(self, result: object, error: object) -> None:
        self.found = error if error is not None else result
        self.came.set()

    def wait(self) -> object:
        assert self.came.wait(60)
        return self.found


def test_golden_samples(server: Server, bundle_batches: Path) -> None:
    golden = read_golden(bundle_batches, Manifest.read(bundle_batches))
    slots = np.arange(4) % len(golden.image)
    inputs = {
        "image": golden.image[slots],
        "audio_embedding": golden.answers.audio_embedding[slots],
    }
    with Remote("http", server.http) as remote:
        found = ask(remote, inputs)[:, 0]
    assert np.abs(found - golden.answers.mask_logits[slots]).max() < 1e-3
