"""The eager model on a device: weights and inputs are moved, calls are waited for, arithmetic is said.

Without a GPU torch's `meta` device stands in for it: torch itself refuses to mix it with tensors of the
host, so a move that is missing fails here as it would on CUDA. A virtual clock stands in for its time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from save_deploy.bundle import GraphSpec, TensorSpec
from save_deploy.errors import BackendError, SaveDeployError
from save_deploy.machine import read_nvidia
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime import eager
from save_deploy.runtime.compare import plan as plan_module
from save_deploy.runtime.compare import speed
from save_deploy.runtime.compare.entries import EagerSource, Entry, Pool
from save_deploy.runtime.compare.plan import _eager, try_eager
from save_deploy.runtime.compare.process import OwnProcess
from save_deploy.runtime.compare.speed import Timing, time_entries, time_interleaved
from save_deploy.runtime.compare.table import compare_columns, table_of
from save_deploy.runtime.eager import EagerSession, arithmetic, eager_pipeline, open_eager
from save_deploy.runtime.eager_mode import MODES, EagerMode, choose_device, named_mode
from tests.conftest import make_tiny
from tests.runtime.compare import options, run_cli
from tests.runtime.openers import Opener

CUDA = EagerMode("cuda")
SPEC = GraphSpec(
    inputs=(TensorSpec("image", "float32", (1, 4), "four numbers"),),
    outputs=(TensorSpec("y", "float32", (1, 4), "their doubles"),),
)
X = {"image": np.array([[1, 2, 3, 4]], np.float32)}
HOST_MS, KERNEL_MS = 1.0, 5.0


@dataclass
class FakeGpu:
    """CUDA as it behaves: the host queues work in HOST_MS and goes on; a device works KERNEL_MS."""

    host_ms: float = 0.0  # the clock of the host
    free_at_ms: float = 0.0  # when the device has done what is queued
    synchronized: bool = True
    moved: list[str] = field(default_factory=list)

    def launch(self) -> None:
        self.host_ms += HOST_MS
        self.free_at_ms = max(self.free_at_ms, self.host_ms) + KERNEL_MS
        self.synchronized = False

    def synchronize(self) -> None:
        self.host_ms = max(self.host_ms, self.free_at_ms)
        self.synchronized = True

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        made = SimpleNamespace(at=None)

        def record() -> None:
            made.at = max(self.host_ms, self.free_at_ms)

        def elapsed_time(other: Any) -> float:
            if not self.synchronized:
                raise RuntimeError("Both events must be completed before calculating elapsed time.")
            return float(other.at - made.at)

        made.record, made.elapsed_time = record, elapsed_time
        return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    monkeypatch.setitem(eager.PLACE, "cuda", "meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: fake.host_ms / 1000)

    def to_host(output: Tensor) -> Any:
        assert output.device.type == "meta", "computed on the host"
        fake.synchronize()  # as torch's copy does
        return np.zeros(output.shape, np.float32)

    monkeypatch.setattr(eager, "to_host", to_host)
    return fake


def double(fake: FakeGpu) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        fake.moved.append(x.device.type)
        fake.launch()
        return 2 * x

    return run


def test_a_call_is_timed_on_both_sides_and_waited_for(gpu: FakeGpu) -> None:
    session = EagerSession(SPEC, double(gpu), CUDA)
    found = time_interleaved(
        {"eager": lambda: session.infer(X)}, rounds=3, warmup=1, on_sample=lambda name: None
    )
    assert found["eager"].samples_ms == pytest.approx([HOST_MS + KERNEL_MS] * 3)
    assert session.device_ms == pytest.approx(
        HOST_MS + KERNEL_MS
    )  # the device waits for the launch
    assert gpu.synchronized and set(gpu.moved) == {"meta"}


def test_without_waiting_it_would_fail(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the same call where nobody synchronizes."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(RuntimeError, match="events must be completed"):
        EagerSession(SPEC, double(gpu), CUDA).infer(X)


def test_on_the_host_nothing_of_cuda_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("synchronize", "Event"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: pytest.fail("CUDA was called"))
    session = EagerSession(SPEC, lambda x: 2 * x)
    np.testing.assert_array_equal(session.infer(X)["y"], 2 * X["image"])
    assert session.device_ms is None


@pytest.mark.slow
def test_the_whole_model_runs_on_the_device(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights, constants, inputs and the sound's side: torch refuses what was left on the host."""
    monkeypatch.setattr(eager, "load_model", lambda *_, **__: make_tiny())
    pipeline = open_eager(tmp_path, None, res=64, batch=1, mode=CUDA, threads=1)
    frame, sound = np.zeros((48, 64, 3), np.uint8), np.zeros(16_000, np.float32)
    assert pipeline(frame, sound).shape == (48, 64)
    assert pipeline.embed(sound).shape == (1, 128)

    left_behind = eager_pipeline(make_tiny(), mode=CUDA)  # the twin: weights of the host
    with pytest.raises(RuntimeError, match=r"device|meta"):
        left_behind(frame, sound)


def test_autocast_and_float32(tiny: Callable[..., Any], inputs: Callable[..., Any]) -> None:
    """BF16 by autocast gives other logits near the float32 ones, and float32 arrays."""
    model = tiny()
    frames, _ = inputs(model)
    given = {"image": frames.numpy(), "audio_embedding": np.ones((1, 128), np.float32)}
    logits = {
        half: eager_pipeline(model, mode=EagerMode("cpu", half=half)).model.infer(given)[
            "mask_logits"
        ]
        for half in ("", "bf16")
    }
    expected = model.forward_embedding(frames, torch.ones(1, 128)).numpy()
    np.testing.assert_array_equal(logits[""], expected)
    assert logits["bf16"].dtype == np.float32
    error = np.abs(logits["bf16"] - expected).max() / np.ptp(expected)
    assert 1e-5 < error < 0.2


def test_tf32_is_off_unless_asked_whatever_the_process_had() -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    try:
        for had in (True, False):
            matmul.allow_tf32 = conv.allow_tf32 = had
            for asked in (True, False):
                with arithmetic(EagerMode("cuda", tf32=asked)):
                    assert (matmul.allow_tf32, conv.allow_tf32) == (asked, asked)
                assert (matmul.allow_tf32, conv.allow_tf32) == (had, had)
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


def test_modes_have_names_and_say_where_they_run() -> None:
    assert MODES == (
        "eager", "eager-tf32", "eager-fp16", "eager-bf16",
        "compile", "compile-tf32", "compile-fp16", "compile-bf16",
    )  # fmt: skip
    assert all(named_mode(name, "cuda").name == name for name in MODES)
    assert named_mode("compile-fp16", "cpu") == EagerMode(half="fp16", compiled=True)
    texts = [named_mode(n, "cuda").device_text for n in ("eager", "eager-tf32")]
    assert texts == ["cuda, TF32 off", "cuda, TF32 on"] and EagerMode().device_text == "cpu"
    for wrong in (dict(device="tpu"), dict(device="cpu", tf32=True)):
        with pytest.raises(SaveDeployError, match=r"unknown device|CUDA only"):
            EagerMode(**wrong)  # type: ignore[arg-type]


def test_the_device_of_the_fastest_backend() -> None:
    assert choose_device(None, ["openvino", "onnxruntime"]) == "cpu"
    assert choose_device(None, ["openvino", "onnxruntime-cuda"]) == "cuda"
    assert choose_device(None, ["tensorrt_rtx"]) == "cuda"
    assert choose_device("cpu", ["tensorrt_rtx"]) == "cpu"


def source(folder: Path) -> EagerSource:
    return EagerSource(folder, None, 64, 1, 4_000_000)


def test_further_rows_on_cuda(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each is tried once; what cannot run is left out with the reason. The reference is float32."""
    why = {"compile": "RuntimeError: no compiler", "compile-fp16": "RuntimeError: no compiler"}
    monkeypatch.setattr(plan_module, "try_eager", lambda entry: why.get(entry.name, ""))
    left_out: dict[tuple[str, str], list[str]] = {}
    asked = options((tmp_path,), eager_tf32=True)
    found = _eager(source(tmp_path), asked, "cuda", left_out)
    assert [(e.name, e.precision, e.device) for e in found] == [
        ("eager", "fp32", "cuda, TF32 off"),
        ("eager-tf32", "fp32", "cuda, TF32 on"),
        ("eager-fp16", "fp16", "cuda, TF32 off"),
        ("eager-bf16", "bf16", "cuda, TF32 off"),
    ]
    assert list(left_out) == [(n, w) for n, w in why.items()]
    few = options((tmp_path,), eager_rows=False)
    assert [e.name for e in _eager(source(tmp_path), few, "cuda", {})] == ["eager"]
    assert [e.name for e in _eager(source(tmp_path), asked, "cpu", {})] == ["eager"]


@pytest.mark.parametrize(("scale", "why"), [(1.0, ""), (np.inf, "its logits are not finite")])
def test_a_row_that_overflows_is_left_out(
    scale: float, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = make_tiny()
    run = model.forward_embedding
    monkeypatch.setattr(model, "forward_embedding", lambda *given: scale * run(*given))
    monkeypatch.setattr(eager, "load_model", lambda *_, **__: model)
    entry = Entry("eager-fp16", "eager", "fp16", 1.0, eager=source(tmp_path), threads=1)
    assert try_eager(entry) == why


def test_samples_of_the_device_reach_the_table(gpu: FakeGpu, tmp_path: Path) -> None:
    """Beside host-to-host times; sessions that measure none have none."""
    measured = SimpleNamespace(model=EagerSession(SPEC, double(gpu), CUDA))
    other = SimpleNamespace(model=SimpleNamespace(infer=lambda inputs: None))
    entries = [Entry(name, "eager", "fp32", 1.0) for name in ("eager", "other")]
    opened: Any = {"eager": measured, "other": other}
    for resident in (True, False):
        with Pool(resident=resident, opened=opened) as pool:
            timing = time_entries(pool, entries, X, rounds=3, extend=False)
        assert timing.device_p50("eager") == pytest.approx(HOST_MS + KERNEL_MS)
        assert timing.device_p50("other") is None
    columns = [c for c in compare_columns(eager=True) if "device" in c.title]
    row = lambda **values: SimpleNamespace(**{"device": "cpu", "device_ms": None, **values})
    shown = table_of(columns, [row(device="cuda, TF32 off", device_ms=1.234), row()])
    assert shown.rows == (("cuda, TF32 off", "1.23"), ("cpu", ""))
    assert Timing({"a": LatencyResult((1.0,))}).device_p50("a") is None


@pytest.mark.slow
def test_a_process_of_its_own_sends_both_times() -> None:
    process = OwnProcess("counted", Opener())
    try:
        process.start()
        process.run()
    finally:
        process.stop()
    assert not process.failed
    assert len(process.samples_ms) == 1 and process.device_ms == [0.25]


@pytest.mark.slow
@pytest.mark.skipif(bool(read_nvidia().gpus), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused_at_once(
    bundle_fp32: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plan_module, "load", lambda *_, **__: pytest.fail("a bundle was opened"))
    assert run_cli([str(bundle_fp32), "--eager-device", "cuda"], monkeypatch) == 3
    told = capsys.readouterr().err
    assert "eager model cannot run on CUDA" in told and "--eager-device cpu" in told
    assert run_cli([str(bundle_fp32), "--eager-device", "tpu"], monkeypatch) == 1
    assert "cpu, cuda" in capsys.readouterr().err
    with pytest.raises(BackendError, match="libcuda"):
        eager.require_device("cuda")
