"""ONNX Runtime's CUDA provider: masks of the eager model, graph equals plain, threads, no leaks.

Written against documentation; not run on a GPU yet. A dry run has its buffers on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from save_deploy.bundle import Arrays, GraphSpec, Manifest
from save_deploy.errors import BackendError
from save_deploy.machine import read_nvidia
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.self_test import golden_parity
from save_deploy.runtime.session import CudaOptions
from save_deploy.runtime.session.ort import CPU, CUDA, require_provider
from save_deploy.runtime.session.ort_cuda import placement
from save_deploy.runtime.session.ort_gpu import OrtGpuSession
from tests.gpu.tree import is_dry

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
MIB = 2**20
PROVIDER, BACKEND = (CPU, "onnxruntime") if is_dry() else (CUDA, "onnxruntime-cuda")
RUNS = 20 if is_dry() else 1000
on_a_gpu = pytest.mark.skipif(is_dry(), reason="a dry run has no GPU")


@dataclass(frozen=True)
class Bundle:
    """A bundle and its precision. inputs: golden ones, a call each."""

    folder: Path
    precision: str
    manifest: Manifest
    inputs: tuple[Arrays, ...]

    @property
    def spec(self) -> GraphSpec:
        return self.manifest.model

    def session(self, **options: Any) -> OrtGpuSession:
        path = self.folder / "model.onnx"
        return OrtGpuSession(
            path, self.spec, provider=PROVIDER, cuda=CudaOptions(**options),
            weights=weight_files(path, self.manifest.files),
        )  # fmt: skip


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def bundle(request: pytest.FixtureRequest, make_bundle: Callable[..., Path]) -> Bundle:
    if not is_dry():
        try:
            require_provider(CUDA)
        except BackendError as error:
            pytest.skip(f"{error.what}: {error.got}")
    folder = make_bundle(request.param)
    manifest = Manifest.read(folder)
    golden = read_golden(folder, manifest)
    inputs = tuple(
        {
            "image": golden.image[i : i + 1],
            "audio_embedding": golden.answers.audio_embedding[i].reshape(1, -1),
        }
        for i in range(min(4, len(golden.image)))
    )
    return Bundle(folder, request.param, manifest, inputs)


def test_golden_parity(bundle: Bundle, figures: Callable[..., None]) -> None:
    """Within the budget that the bundle was exported with, and finite."""
    with load(bundle.folder, backend=BACKEND, self_test=False) as pipeline:
        assert pipeline.backend == BACKEND
        result = golden_parity(pipeline, bundle.folder, bundle.manifest, hint="see the report")
    figures(mask_agreement=result.mask_agreement, max_abs_err=result.max_abs_err)


@on_a_gpu
def test_every_node_is_on_the_gpu(bundle: Bundle, figures: Callable[..., None]) -> None:
    with bundle.session() as session:
        found = placement(session._session)
        figures(nodes=sum(map(len, found.values())), cuda_graph=session.cuda.graph)
        assert set(found) == {PROVIDER}
        assert not [n for nodes in found.values() for n in nodes if n.startswith("Memcpy")]
        assert session.cuda.graph, "the graph was not captured"


def test_graph_equals_plain(bundle: Bundle) -> None:
    with bundle.session() as graph, bundle.session(graph=False) as plain:
        assert (graph.cuda.graph, plain.cuda.graph) == (True, False)
        for i in (0, 1, 0):
            inputs = bundle.inputs[i % len(bundle.inputs)]
            np.testing.assert_array_equal(
                graph.infer(inputs)["mask_logits"], plain.infer(inputs)["mask_logits"]
            )


def test_threads(bundle: Bundle) -> None:
    """Each captures a graph of its own; results are those of one thread."""
    n = len(bundle.inputs)
    with bundle.session() as session:
        expected = [session.infer(i)["mask_logits"] for i in bundle.inputs]
        with ThreadPoolExecutor(4) as pool:
            got = list(
                pool.map(lambda i: session.infer(bundle.inputs[i % n])["mask_logits"], range(32))
            )
    for i, logits in enumerate(got):
        np.testing.assert_array_equal(logits, expected[i % n])


def free_bytes() -> int:
    """Free memory of the first GPU; 0 without one."""
    gpus = read_nvidia().gpus
    return (gpus[0].free_bytes or 0) if gpus else 0


def test_nothing_leaks(bundle: Bundle, figures: Callable[..., None]) -> None:
    """Memory of the device and of the process stay, over runs and over sessions."""
    process, inputs = psutil.Process(os.getpid()), bundle.inputs[0]
    with bundle.session() as session:
        for _ in range(min(50, RUNS)):
            session.infer(inputs)
        free, rss = free_bytes(), process.memory_info().rss
        for _ in range(RUNS):
            session.infer(inputs)
        lost, grown = (free - free_bytes()) / MIB, (process.memory_info().rss - rss) / MIB
    figures(runs=RUNS, device_mib_lost=lost, host_mib_grown=grown)
    assert lost <= 2 and grown <= 16
    free = free_bytes()
    for _ in range(3):
        with bundle.session() as session:
            session.infer(inputs)
    figures(device_mib_lost_by_3_sessions=(free - free_bytes()) / MIB)
    assert (free - free_bytes()) / MIB <= 64


@on_a_gpu
def test_device_arrays(bundle: Bundle) -> None:
    """torch's tensors in and out by DLPack, nothing passes the host; then the host's arrays again."""
    import torch

    inputs = bundle.inputs[0]
    with bundle.session() as session:
        expected = session.infer(inputs)["mask_logits"]
        given = {n: torch.from_numpy(np.ascontiguousarray(a)).cuda() for n, a in inputs.items()}
        for _ in range(3):
            found = torch.from_dlpack(session.infer_device(given)["mask_logits"])
            assert found.is_cuda
            np.testing.assert_array_equal(found.cpu().numpy(), expected)
        np.testing.assert_array_equal(session.infer(inputs)["mask_logits"], expected)


@on_a_gpu
def test_device_arrays_of_cupy(bundle: Bundle) -> None:
    cupy = pytest.importorskip("cupy")
    inputs = bundle.inputs[0]
    with bundle.session() as session:
        expected = session.infer(inputs)["mask_logits"]
        given = {n: cupy.asarray(a) for n, a in inputs.items()}
        found = cupy.from_dlpack(session.infer_device(given)["mask_logits"])
        np.testing.assert_array_equal(cupy.asnumpy(found), expected)


def test_extreme_inputs_stay_finite(bundle: Bundle, figures: Callable[..., None]) -> None:
    """Black, white and noise under silence and under a loud sound: FP16 ends at 65504."""
    image, embedding = bundle.spec.inputs
    rng = np.random.default_rng(0)
    worst = 0.0
    with bundle.session() as session:
        for picture in (np.zeros, np.ones):
            for sound in (0.0, 1.0, 5.0):
                logits = session.infer({
                    "image": (255 * picture(image.shape)).astype(np.uint8),
                    "audio_embedding": np.full(embedding.shape, sound, np.float32),
                })["mask_logits"]  # fmt: skip
                assert np.isfinite(logits).all()
                worst = max(worst, float(np.abs(logits).max()))
        noise = rng.integers(0, 256, image.shape, dtype=np.uint8)
        heard = rng.random(embedding.shape, dtype=np.float32)
        assert np.isfinite(
            session.infer({"image": noise, "audio_embedding": heard})["mask_logits"]
        ).all()
    figures(largest_logit=worst)


@on_a_gpu
def test_tf32_is_off(bundle: Bundle, figures: Callable[..., None]) -> None:
    """Asked for, it changes float32 products; unasked, errors are those of float32."""
    if bundle.precision != "fp32":
        pytest.skip("float32 products only")
    reference = read_golden(bundle.folder, bundle.manifest).answers.mask_logits
    errors = {}
    for tf32 in (False, True):
        with bundle.session(tf32=tf32) as session:
            logits = np.concatenate([session.infer(i)["mask_logits"][:, 0] for i in bundle.inputs])
        errors[tf32] = float(np.abs(logits - reference[: len(logits)]).max())
    figures(max_abs_err=errors[False], max_abs_err_with_tf32=errors[True])
    assert errors[False] < 0.2 * errors[True]


@on_a_gpu
def test_auto_takes_the_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path))
    for _ in range(2):  # with the self-test, then from its verdict
        with load(bundle.folder) as pipeline:
            assert pipeline.backend == BACKEND
    assert len(list((tmp_path / "self_test").iterdir())) == 1


def test_speed(bundle: Bundle, figures: Callable[..., None]) -> None:
    """Only reported: from host to host, and of device arrays."""
    from save_deploy.runtime.compare.speed import time_interleaved

    rounds = 3 if is_dry() else 200
    with bundle.session() as graph, bundle.session(graph=False) as plain:
        calls: dict[str, Callable[[], object]] = {
            "graph": lambda: graph.infer(bundle.inputs[0]),
            "plain": lambda: plain.infer(bundle.inputs[0]),
        }
        if not is_dry():
            import torch

            given = {
                n: torch.from_numpy(np.ascontiguousarray(a)).cuda()
                for n, a in bundle.inputs[0].items()
            }
            calls["graph_device_arrays"] = lambda: graph.infer_device(given)
        taken = time_interleaved(calls, rounds=rounds)
    figures(**{f"{name}_p50_ms": result.p50_ms for name, result in taken.items()})
