"""The benchmark: honest rounds, entries that fail are named, a wrong graph shows in its error."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from save_deploy.checkpoints import load_model
from save_deploy.checkpoints.random import write_random_checkpoint
from save_deploy.config import SaveConfig
from save_deploy.errors import BackendError, SaveDeployError
from save_deploy.export.bench import benchmark
from save_deploy.export.bench_graphs import (
    example_inputs,
    parse_forms,
    write_empty_graph,
    write_gemm_graph,
    write_variants,
)
from save_deploy.machine import peak_memory_mib
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime.bench import run as bench_run
from save_deploy.runtime.bench.entries import (
    Subject,
    graph_entry,
    is_int8,
    parse_entries,
    split_names,
)
from save_deploy.runtime.bench.options import BenchOptions
from save_deploy.runtime.bench.report import footnote, plot, print_result, table, write_result
from save_deploy.runtime.bench.run import BenchResult, Outcome, run_bench
from save_deploy.runtime.bench.yardsticks import GEMM_SIDE, GEMM_SPEC, Yardsticks
from save_deploy.runtime.compare.entries import EagerSource
from save_deploy.runtime.kernels import executed_kernels
from save_deploy.runtime.session import open_session
from tests.conftest import TINY


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, dict[str, Path], Path]:
    """A tiny model with random weights: naive, merged and empty graphs."""
    folder = tmp_path_factory.mktemp("bench")
    config = SaveConfig(**{**TINY, "res": 224, "window_size": 5})
    checkpoint = write_random_checkpoint(folder / "random.safetensors", config)
    subject, files = write_variants(
        ["naive", "merged"], folder, checkpoint=checkpoint, sam=None, res=224, batch=1
    )
    return subject, files, write_empty_graph(subject.spec, folder / "empty.onnx")


@pytest.mark.thorough
def test_random_weights_are_not_trivial(prepared: tuple[Subject, dict[str, Path], Path]) -> None:
    """Norms and biases matter, so a wrong fold of them would be seen; same seed, same weights."""
    model = load_model(prepared[0].source.checkpoint)
    block = model.image_encoder.blocks[0]
    for tensor in (block.norm1.weight - 1, block.norm1.bias, block.attn.rel_pos_h):
        assert tensor.std() > 0.05
    assert prepared[0].parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.thorough
@pytest.mark.parametrize("resident", [True, False])
def test_rounds(
    prepared: tuple[Subject, dict[str, Path], Path],
    resident: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    subject, files, empty = prepared
    monkeypatch.setattr(bench_run, "_fits", lambda *_: resident)
    broken = _scaled(files["merged"], tmp_path / "broken.onnx")
    forms = "eager,naive,merged" if resident else "eager,merged"  # loading anew takes time
    entries = [
        *parse_entries(forms, ["onnxruntime"], files, subject),
        *parse_entries(
            "merged", ["openvino"], files, subject
        ),  # 2026.4 crashes on naive with one thread
        graph_entry("broken", "onnxruntime", broken, subject),
        graph_entry("missing", "onnxruntime", tmp_path / "missing.onnx", subject),
    ]
    steps: list[str] = []
    result = run_bench(
        subject, entries, example_inputs(subject.spec), rounds=3,
        yardsticks=Yardsticks(empty, write_gemm_graph(tmp_path / "gemm.onnx")),
        on_step=lambda name, n: steps.extend([name] * n),
    )  # fmt: skip
    by_name = {o.entry.name: o for o in result.outcomes}
    assert "missing.onnx" in by_name.pop("missing (onnxruntime)").failed
    assert not {name: o.failed for name, o in by_name.items() if o.failed}
    calls = 3 if resident else 6
    assert all(o.latency and len(o.latency.samples_ms) == calls for o in by_name.values())
    assert steps.count("eager (torch)") == steps.count("merged (openvino)") == 3
    for name, outcome in by_name.items():
        if name.startswith(("naive", "merged")):
            assert outcome.max_rel_err is not None and outcome.max_rel_err <= 1e-4, name
        assert 0 < outcome.load_s < outcome.first_mask_s and outcome.peak_mib > 20
    error = by_name["broken (onnxruntime)"].max_rel_err
    assert error is not None and error > 1e-3, "a wrong graph must show"
    # torch alone is larger than a whole runtime: each process reports its own memory
    assert by_name["eager (torch)"].peak_mib > by_name["merged (onnxruntime)"].peak_mib
    assert set(result.overhead_us) == {"onnxruntime", "openvino"}
    assert set(result.gemm) == {"torch", "onnxruntime", "openvino"}
    assert result.floor_ms == pytest.approx(2 * subject.macs / (result.gemm_gflops * 1e6))
    shown = table(result)
    assert shown.rows[0][shown.columns.index("x eager")] == "1.00"

    print_result(result)
    assert "missing" in (out := capsys.readouterr().out) and "GEMM rate" in out
    write_result(result, tmp_path / "out", "save-deploy bench")
    stored = json.loads((tmp_path / "out" / "bench.json").read_text(), parse_constant=pytest.fail)
    assert len(stored["entries"]) == len(entries)
    assert all(len(c["samples_ms"]) == calls for c in stored["entries"] if "failed" not in c)
    assert (tmp_path / "out" / "bench.png").stat().st_size > 5_000
    assert any("interleaved" in line for line in footnote(result))


def _scaled(path: Path, out: Path) -> Path:
    """A graph with one norm 20 % too large."""
    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if w.name == "blocks.1.norm2.weight")
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(1.2 * values, weight.name))
    onnx.save(model, out)
    return out


@pytest.mark.parametrize(("n", "fits"), [(4, True), (5, False)])
def test_entries_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch, n: int, fits: bool) -> None:
    """1.6 x 1 GB of weights + 0.4 GB of activations + 0.6 GB of libraries, of 3/4 of 14 GB."""
    subject: Any = SimpleNamespace(
        source=SimpleNamespace(n_bytes=1_000_000_000), activation_bytes=400_000_000
    )
    memory = SimpleNamespace(total=14_000_000_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert bench_run._fits(subject, n) == fits


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_empty_graph_has_the_interface(
    prepared: tuple[Subject, dict[str, Path], Path], backend: str
) -> None:
    subject, _, empty = prepared
    with open_session(backend, empty, subject.spec) as session:
        logits = session.infer(example_inputs(subject.spec))["mask_logits"]
    assert logits.shape == (1, 1, 224, 224) and np.ptp(logits) == 0


@pytest.mark.thorough
def test_useful_work_is_what_the_merged_graph_does(
    prepared: tuple[Subject, dict[str, Path], Path],
) -> None:
    """Padding is not useful: the floor is below eager's multiplications (windows of 5 on 14x14)."""
    subject = prepared[0]
    assert 0 < subject.macs < subject.macs_eager


def test_names() -> None:
    assert split_names("eager, naive,eager") == ["eager", "naive"]
    for wrong in ("eager,magic", "bundle:", "", "merged:"):
        with pytest.raises(SaveDeployError, match=r"unknown entry|nothing to benchmark"):
            split_names(wrong)
    forms = parse_forms("merged:windows=late_pad+scale=off", res=256)
    assert (forms.windows, forms.scale, forms.rel_pos) == ("late_pad", False, "bias")
    for wrong in ("merged:windows=never", "merged:magic=on", "merged:scale=late_pad"):
        with pytest.raises(SaveDeployError, match="unknown form"):
            parse_forms(wrong, res=256)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(what="magic"), SaveDeployError, "unknown entry"),
        (dict(backends="tensorrt"), BackendError, "not available"),
        (dict(preset="vit_x"), SaveDeployError, "unknown preset"),
        (dict(preset="vit_t", checkpoint=Path("x")), SaveDeployError, "two models"),
        (dict(what="bundle:nowhere"), SaveDeployError, "not a bundle"),
    ],
)
def test_user_errors(tmp_path: Path, options: dict, error: type, message: str) -> None:  # type: ignore[type-arg]
    asked = BenchOptions(out=tmp_path / "out", **options)
    with pytest.raises(error, match=message):
        benchmark(asked, on_text=pytest.fail, progress=pytest.fail)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_peak_memory_is_of_this_process() -> None:
    before = peak_memory_mib()
    block = np.ones(60 * 2**17)  # 60 MiB
    assert block.nbytes / 2**20 <= peak_memory_mib() >= before


@pytest.mark.thorough
def test_int8_graphs_are_quantized(
    prepared: tuple[Subject, dict[str, Path], Path], tmp_path: Path
) -> None:
    """Ours has Q/DQ before MatMuls alone; the usual tools quantize whatever they find. The FP16 graph's
    weights are 16 bits wide."""
    checkpoint = prepared[0].source.checkpoint
    _, files = write_variants(
        ["naive-int8", "int8", "fp16"], tmp_path, checkpoint=checkpoint, sam=None, res=224, batch=1
    )
    count = lambda name, op: sum(n.op_type == op for n in onnx.load(files[name]).graph.node)
    entries = parse_entries("naive,naive-int8,int8", ["onnxruntime"], files, prepared[0])
    assert [is_int8(entry) for entry in entries] == [False, True, True]
    assert set(files) == {"naive", "naive-int8", "int8", "fp16"}
    types = {w.data_type for w in onnx.load(files["fp16"]).graph.initializer if len(w.dims) == 2}
    assert onnx.TensorProto.FLOAT16 in types and count("fp16", "QuantizeLinear") == 0
    assert parse_entries("fp16", ["onnxruntime"], files, prepared[0])[0].precision == "fp16"
    assert count("int8", "QuantizeLinear") > 0 and count("naive", "QuantizeLinear") == 0
    assert count("naive-int8", "QuantizeLinear") > count("int8", "QuantizeLinear")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_yardstick(tmp_path: Path, backend: str) -> None:
    """The same product as the float one, by an INT8 kernel."""
    pytest.importorskip(backend)
    a = np.random.default_rng(0).random((GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    found = {}
    for int8 in (False, True):
        path = write_gemm_graph(tmp_path / f"{int8}.onnx", int8=int8)
        onnx.checker.check_model(path, full_check=True)
        assert executed_kernels(backend, path, ["c"], {"a": a}).int8 == int8
        with open_session(backend, path, GEMM_SPEC) as session:
            found[int8] = session.infer({"a": a})["c"][:8].copy()
    if backend == "onnxruntime":  # OpenVINO saturates sums of two products without VNNI
        np.testing.assert_allclose(found[True], found[False], rtol=2e-3)


def test_int8_entries_have_their_own_references(tmp_path: Path) -> None:
    """Ratios of the same rounds on the same backend; the rate of INT8 products for INT8 entries."""
    config = SaveConfig(**TINY)
    source = EagerSource(tmp_path, None, config.res, 1, 4)
    subject = Subject(config, source, None, 1, macs_eager=GEMM_SIDE**3, macs=GEMM_SIDE**3)
    made = lambda form, backend, ms: Outcome(
        graph_entry(form, backend, Path("x"), subject), LatencyResult(tuple(map(float, ms)))
    )
    outcomes = (
        made("naive", "onnxruntime", [80, 100, 120]),
        made("naive-int8", "onnxruntime", [40, 50, 60]),
        made("int8", "onnxruntime", [20, 20, 20]),
        made("int8", "openvino", [10, 10, 10]),
    )
    gemm = {"torch": LatencyResult((12.0,)), "onnxruntime": LatencyResult((10.0,))}
    result = BenchResult(
        subject, outcomes, gemm, {"onnxruntime": LatencyResult((4.0,))}, {}, resident=True
    )
    assert (result.floor_ms, result.floor_int8_ms) == (pytest.approx(10), pytest.approx(4))
    found = table(result)
    shown = [dict(zip(found.columns, texts, strict=True)) for texts in found.rows]
    assert [row["x naive-int8"] for row in shown] == ["0.50", "1.00", "2.50", ""]
    assert [row["x naive"] for row in shown] == ["1.00", "2.00", "5.00", ""]
    assert [row["of GEMM rate"] for row in shown] == ["10%", "8%", "20%", "40%"]
    text = " ".join(footnote(result))
    assert "without smoothing" in text and "same product in INT8" in text
    assert plot(result, tmp_path / "bench.png")
    write_result(result, tmp_path, "bench")
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert stored["entries"][2]["x_naive_int8"] == 2.5 and stored["floor_int8_ms"] == 4

    floats = BenchResult(subject, outcomes[:1], gemm, {}, {}, resident=True)
    assert "x naive-int8" not in table(floats).columns and floats.floor_int8_ms is None
    assert "smoothing" not in " ".join(footnote(floats))


def test_yardsticks_of_what_is_measured(tmp_path: Path) -> None:
    config = SaveConfig(**TINY)
    subject = Subject(config, EagerSource(tmp_path, None, config.res, 1, 4), None, 1, 1, 1)
    yardsticks = Yardsticks(None, tmp_path, tmp_path)
    named = lambda *entries: [gemm.name for gemm in yardsticks.gemms(entries)]
    floats = graph_entry("merged", "openvino", tmp_path, subject)
    int8 = graph_entry("int8", "onnxruntime", tmp_path, subject)
    assert named(floats) == ["gemm (torch)", "gemm (openvino)"]
    assert named(floats, int8) == [
        "gemm (torch)", "gemm (openvino)", "gemm (onnxruntime)", "gemm-int8 (onnxruntime)",
    ]  # fmt: skip
