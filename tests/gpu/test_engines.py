"""Engines on a GPU: same masks as the eager model, graphs equal plain runs, nothing leaks.

Written against documentation; not run on a GPU yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from save_deploy.bundle import Arrays, GraphSpec, Manifest
from save_deploy.machine import read_nvidia
from save_deploy.runtime.engine_check import Machine, engine_refusals, engine_validity
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.self_test import golden_parity
from save_deploy.runtime.session.tensorrt import TensorRtSession
from tests.gpu.conftest import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
MIB = 2**20


def inputs_of(spec: GraphSpec, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    image, embedding = spec.inputs
    return {
        "image": rng.integers(0, 256, image.shape, dtype=np.uint8),
        "audio_embedding": rng.random(embedding.shape, dtype=np.float32),
    }


def opened(engine: Engine, **options: Any) -> TensorRtSession:
    return TensorRtSession(engine.file, engine.spec, library=engine.library, **options)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8_fp16"])
def test_parity_with_eager(
    library: str, precision: str, make_engine: Callable[..., Engine], figures: Callable[..., None]
) -> None:
    """Build, check, load, golden samples: within the budget the bundle was exported with."""
    engine = make_engine(library, precision=precision)
    manifest = Manifest.read(engine.folder)
    with load(engine.folder, backend=library, self_test=False) as pipeline:
        assert pipeline.backend == library
        result = golden_parity(pipeline, engine.folder, manifest, hint="see the report")
    receipt = engine.receipt
    figures(
        mask_agreement=result.mask_agreement,
        max_abs_err=result.max_abs_err,
        engine_mib=engine.entry["engine_bytes"] / MIB,
        fused=f"{receipt['fused']}/{receipt['attentions']}",
        int8=f"{receipt['quantised']}/{receipt['quantised_asked']}",
    )


def test_rules_and_the_librarys_own_word(
    library: str, make_engine: Callable[..., Engine], machine: Machine
) -> None:
    """Both accept what was built here."""
    engine = make_engine(library)
    files = Manifest.read(engine.folder).files
    assert engine_refusals(engine.entry, engine.folder, files, machine) == []
    assert engine_validity(library, engine.file)[0] in (None, "VALID")


def test_auto_takes_the_engine(
    library: str, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path))
    engine = make_engine(library)
    for _ in range(2):  # with the self-test, then from its verdict
        with load(engine.folder) as pipeline:
            assert pipeline.backend == library
    assert len(list((tmp_path / "self_test").iterdir())) == 1


def test_graph_replay_equals_plain_execution(
    library: str, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(library)
    with opened(engine) as graph, opened(engine, cuda_graph=False) as plain:
        for seed in (0, 1, 0, 2):
            inputs = inputs_of(engine.spec, seed)
            np.testing.assert_array_equal(
                graph.infer(inputs)["mask_logits"], plain.infer(inputs)["mask_logits"]
            )


def test_threads_share_an_engine(library: str, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(library)
    with opened(engine) as session:
        expected = [session.infer(inputs_of(engine.spec, i))["mask_logits"] for i in range(4)]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda i: session.infer(inputs_of(engine.spec, i % 4)), range(64)))
    for i, outputs in enumerate(got):
        np.testing.assert_array_equal(outputs["mask_logits"], expected[i % 4])


def test_device_arrays(library: str, make_engine: Callable[..., Engine]) -> None:
    """torch's tensors in (by DLPack), torch's view of the result out."""
    import torch

    engine = make_engine(library)
    inputs = inputs_of(engine.spec)
    with opened(engine) as session:
        expected = session.infer(inputs)["mask_logits"]
        given = {n: torch.from_numpy(a).cuda() for n, a in inputs.items()}
        found = session.infer_device(given)["mask_logits"]
        np.testing.assert_array_equal(torch.as_tensor(found, device="cuda").cpu(), expected)


def free_bytes() -> int:
    """Free memory of the first GPU."""
    return read_nvidia().gpus[0].free_bytes or 0


def test_nothing_leaks(
    library: str, make_engine: Callable[..., Engine], figures: Callable[..., None]
) -> None:
    """1,000 runs and 5 sessions after a warm-up: memory of the device and of the process stay."""
    engine, process = make_engine(library), psutil.Process(os.getpid())
    inputs = inputs_of(engine.spec)
    with opened(engine) as session:
        for _ in range(50):
            session.infer(inputs)
        free, rss = free_bytes(), process.memory_info().rss
        for _ in range(1000):
            session.infer(inputs)
        lost = (free - free_bytes()) / MIB
        grown = (process.memory_info().rss - rss) / MIB
    figures(device_mib_lost=lost, host_mib_grown=grown)
    assert lost <= 2 and grown <= 16
    free = free_bytes()
    for _ in range(5):
        with opened(engine) as session:
            session.infer(inputs)
    assert (free - free_bytes()) / MIB <= 8


def test_onnxruntimes_tensorrt_provider(
    make_bundle: Callable[..., Path], figures: Callable[..., None]
) -> None:
    """Golden samples, where TensorRT 10 is installed."""
    from save_deploy.errors import BackendError
    from save_deploy.runtime.session.ort import TENSORRT, require_provider

    try:
        require_provider(TENSORRT)
    except BackendError as error:
        pytest.skip(f"{error.what}: {error.got}")
    folder = make_bundle("fp16")
    with load(folder, backend="onnxruntime-tensorrt") as pipeline:
        result = golden_parity(pipeline, folder, Manifest.read(folder), hint="see the report")
    figures(mask_agreement=result.mask_agreement, max_abs_err=result.max_abs_err)
