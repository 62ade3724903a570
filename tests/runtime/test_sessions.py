"""Sessions: both backends give the same, outputs belong to the caller, threads may share them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from save_deploy.bundle import Arrays, GraphSpec, Manifest, TensorSpec
from save_deploy.data.scenes import Scenes
from save_deploy.errors import BackendError, DataError, UnknownBackend
from save_deploy.machine import has_int8_dot_product
from save_deploy.runtime.kernels import executed_kernels
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.session import (
    available_backends,
    default_threads,
    open_session,
)
from save_deploy.runtime.session.base import BufferedSession
from save_deploy.runtime.session.open import Content, known_backend
from save_deploy.runtime.session.openvino import cpu_config
from save_deploy.runtime.session.ort import OrtSession, session_options
from save_deploy.runtime.stream import stream
from save_deploy.runtime.verify import verify_bundle

BACKENDS = ["onnxruntime", "openvino"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def inputs_of(session: BufferedSession, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    image, embedding = session.spec.inputs
    return {
        "image": rng.integers(0, 256, image.shape, dtype=np.uint8),
        "audio_embedding": rng.random(embedding.shape, dtype=np.float32),
    }


def opened(bundle: Path, backend: str, **options: object) -> BufferedSession:
    return open_session(backend, bundle / "model.onnx", Manifest.read(bundle).model, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_samples(bundle: Path, backend: str) -> None:
    assert verify_bundle(bundle, backend=backend).parity.mask_agreement >= 0.995


def test_auto_prefers_openvino(bundle: Path) -> None:
    assert available_backends() == ("openvino", "onnxruntime")
    with load(bundle) as pipeline:
        assert pipeline.backend == "openvino"


def test_missing_openvino_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(
        BackendError, match=r"not installed(.|\n)*save-deploy\[openvino\]"
    ) as caught:
        opened(bundle, "openvino")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_broken_graph_is_refused(bundle: Path, tmp_path: Path, backend: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((bundle / "model.onnx").read_bytes()[:5000])
    with pytest.raises(BackendError, match=f"{backend} cannot run"):
        open_session(backend, path, Manifest.read(bundle).model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_belong_to_the_caller(bundle: Path, backend: str) -> None:
    """The buffer is reused by the next call; an earlier result must not change."""
    with opened(bundle, backend) as session:
        first = session.infer(inputs_of(session, 0))["mask_logits"]
        kept = first.copy()
        second = session.infer(inputs_of(session, 1))["mask_logits"]
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(first, kept)
        image = inputs_of(session, 0)
        image["image"] = np.asfortranarray(image["image"])  # any memory layout
        np.testing.assert_array_equal(session.infer(image)["mask_logits"], kept)
    with pytest.raises(BackendError, match="closed"):
        session.infer(image)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_share_a_session(bundle: Path, backend: str) -> None:
    with opened(bundle, backend, threads=1) as session:
        expected = [session.infer(inputs_of(session, i))["mask_logits"] for i in range(4)]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda i: session.infer(inputs_of(session, i % 4)), range(16)))
    for i, outputs in enumerate(got):
        np.testing.assert_array_equal(outputs["mask_logits"], expected[i % 4])


def test_openvino_computes_in_f32_with_our_threads(bundle: Path) -> None:
    with opened(bundle, "openvino", threads=1) as session:
        read = session._model.get_property  # type: ignore[attr-defined]
        assert read("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert read("INFERENCE_NUM_THREADS") == 1 and int(read("NUM_STREAMS")) == 1
    assert 1 <= default_threads()


def test_compiled_model_is_cached_by_content(bundle: Path, cache: Path) -> None:
    with load(bundle, backend="openvino") as pipeline:
        before = pipeline(*example())
    made = {p.name for p in (cache / "openvino").iterdir()}
    manifest = Manifest.read(bundle)
    graphs = (("model.onnx", ["model.onnx.data"]), ("audio.onnx", []))
    assert made == {manifest.content_of(*graph)[:16] for graph in graphs}
    with load(bundle, backend="openvino") as pipeline:
        np.testing.assert_array_equal(pipeline(*example()), before)
    assert {p.name for p in (cache / "openvino").iterdir()} == made


def test_short_memory(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped weights give the same masks; where copies would not fit, auto takes that way."""
    with opened(bundle, "onnxruntime") as session:
        inputs = inputs_of(session)
        expected = session.infer(inputs)["mask_logits"]
    with opened(bundle, "onnxruntime", low_memory=True) as session:
        np.testing.assert_allclose(session.infer(inputs)["mask_logits"], expected, atol=5e-2)
    nothing_free = psutil.virtual_memory()._replace(available=1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: nothing_free)
    with opened(bundle, "auto") as session:
        assert session.backend == "onnxruntime"


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_broken_cache_is_no_obstacle(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """Damaged files are compiled anew; a folder nobody can write to (None) means no cache."""
    with load(bundle, backend="openvino") as pipeline:
        before = pipeline(*example())
    if content is None:
        monkeypatch.setenv("SAVE_DEPLOY_CACHE", "/proc/nowhere")
    else:
        for blob in cache.rglob("*.blob"):
            blob.chmod(0o600)
            blob.write_bytes(content)
    with load(bundle, backend="openvino") as pipeline:
        np.testing.assert_array_equal(pipeline(*example()), before)


def example() -> tuple[np.ndarray, np.ndarray]:
    clip = Scenes(n_clips=1)[0]
    return clip.frames[0], clip.waveform


class _Counting:
    """A pipeline that counts how often it listens."""

    def __init__(self, pipeline: SavePipeline) -> None:
        self.pipeline, self.heard = pipeline, []  # type: ignore[var-annotated]

    def embed(self, waveform: np.ndarray) -> np.ndarray:
        self.heard.append(waveform)
        return self.pipeline.embed(waveform)

    def mask(self, frame: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        return self.pipeline.mask(frame, embedding)


def test_stream_listens_once_per_second(bundle: Path) -> None:
    """10 frames at 4 per second: three seconds heard; masks as from single calls."""
    frame, _ = example()
    sound = np.random.default_rng(0).normal(scale=0.1, size=40_000).astype(np.float32)  # 2.5 s
    with load(bundle, backend="onnxruntime") as pipeline:
        counting = _Counting(pipeline)
        masks = list(stream(counting, [frame] * 10, sound, frames_per_s=4))  # type: ignore[arg-type]
        assert [len(w) for w in counting.heard] == [16_000, 16_000, 8_000]
        for i in (0, 3, 4, 9):
            window = sound[(i // 4) * 16_000 : (i // 4 + 1) * 16_000]
            np.testing.assert_array_equal(masks[i], pipeline(frame, window))
        live = stream(pipeline, [frame] * 10, iter(np.split(sound[:32_000], 2)), frames_per_s=4)
        np.testing.assert_array_equal(list(live)[:8], masks[:8])
        after = list(stream(pipeline, [frame] * 2, sound[:16_000], frames_per_s=1))
        np.testing.assert_array_equal(after[1], pipeline(frame, np.zeros(16_000, np.float32)))
        with pytest.raises(DataError, match="frame rate"):
            next(stream(pipeline, [frame], sound, frames_per_s=0))


@pytest.mark.thorough
def test_clip_bundle(bundle_fp32: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Five frames a call: same logits as one at a time; any number of frames is completed."""
    from save_deploy.export.export import export
    from save_deploy.export.options import ExportOptions

    one = Manifest.read(bundle_fp32)
    options = ExportOptions(
        checkpoint=tiny_checkpoint, res=one.config.res, batch=5, out=tmp_path / "clip", n_golden=7,
        rounds=3,
    )  # fmt: skip
    export(options)
    clip, side = Scenes(n_clips=1)[0], one.config.res
    assert Manifest.read(tmp_path / "clip").model.inputs[0].shape == (5, side, side, 3)
    with load(tmp_path / "clip") as five, load(bundle_fp32) as one:
        assert (five.batch, one.batch) == (5, 1)
        expected = one.clip_logits(list(clip.frames), clip.waveform)
        got = five.clip_logits(list(clip.frames), clip.waveform)
        np.testing.assert_allclose(got, expected, atol=1e-3)
        np.testing.assert_allclose(
            five.clip_logits(list(clip.frames[:2]), clip.waveform), expected[:2], atol=1e-3
        )
    assert verify_bundle(tmp_path / "clip").parity.n_frames == 7


def test_kernels_are_checked_with_the_options_of_the_sessions() -> None:
    ours = session_options(3)
    assert (ours.intra_op_num_threads, ours.inter_op_num_threads) == (3, 1)
    assert ours.get_session_config_entry("session.force_spinning_stop") == "1"
    assert cpu_config(3)["INFERENCE_NUM_THREADS"] == 3
    assert cpu_config(3)["INFERENCE_PRECISION_HINT"] == "f32"


PEAKS = """
import sys, numpy as np, onnxruntime
from save_deploy.runtime.session.ort import session_options
options = session_options(1)
options.enable_mem_pattern = sys.argv[2] == "planned"
session = onnxruntime.InferenceSession(sys.argv[1], options)
for _ in range(3):
    session.run(None, {"x": np.ones((4096, 1), np.float32)})
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    print(int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_second_call_takes_no_more_memory(tmp_path: Path) -> None:
    """12 tensors of 64 MiB at a time; the twin: with ONNX Runtime's plan they are there twice."""
    names = [f"square{i}" for i in range(12)]
    nodes = [helper.make_node("Transpose", ["x"], ["row0"])]
    for i, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", ["x", f"row{i}"], [name]))
        nodes.append(helper.make_node("Exp", [f"row{i}"], [f"row{i + 1}"]))
    nodes.append(helper.make_node("Sum", names, ["sum"]))
    nodes.append(helper.make_node("ReduceSum", ["sum"], ["y"], keepdims=0))
    side = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "square", [side("x", 4096, 1)], [side("y")])
    path = tmp_path / "square.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    grown = {}
    for how in ("planned", "ours"):
        command = [sys.executable, "-c", PEAKS, str(path), how]
        first, *_, last = map(int, subprocess.check_output(command, text=True).split())
        grown[how] = last - first
    assert session_options(1).enable_mem_pattern is False
    assert grown["ours"] < 200 and grown["planned"] > 700, grown


def test_an_8_bit_weight_that_two_products_share(tmp_path: Path) -> None:
    """ONNX Runtime's precise kernels refuse it (without VNNI): it runs on the others."""
    rng = np.random.default_rng(0)
    weight, zero = rng.integers(-9, 10, (64, 64), dtype=np.int8), np.int8(0)
    constants = {"w": weight, "step": np.float32(0.5), "one": np.float32(1), "zero": zero}
    nodes = []
    for i, name in enumerate(("x", "y1")):
        scales = ("step", "one")[i]
        nodes += [
            helper.make_node("QuantizeLinear", [name, "step", "zero"], [f"{name}.q"]),
            helper.make_node("DequantizeLinear", [f"{name}.q", "step", "zero"], [f"{name}.d"]),
            helper.make_node("DequantizeLinear", ["w", scales, "zero"], [f"{name}.w"]),
            helper.make_node("MatMul", [f"{name}.d", f"{name}.w"], [f"y{i + 1}"]),
        ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 64))
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "shared", [value("x")], [value("y2")], stored)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
    spec = GraphSpec(
        (TensorSpec("x", "float32", (4, 64), ""),), (TensorSpec("y2", "float32", (4, 64), ""),)
    )
    x = rng.random((4, 64), dtype=np.float32)
    step = lambda a: np.clip(np.rint(a * 2), -128, 127) / 2
    expected = step(step(x) @ (weight * 0.5)) @ weight
    with OrtSession(tmp_path / "m.onnx", spec) as session:
        np.testing.assert_allclose(session.infer({"x": x})["y2"], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("openvin", "--backend openvino"), ("TensorRT_RXT", "--backend tensorrt-rtx"), ("xyz", "")],
)
def test_an_unknown_backend_is_answered_with_the_nearest(name: str, hint: str) -> None:
    assert known_backend("TensorRT_RTX") == known_backend("tensorrt-rtx") == "tensorrt_rtx"
    with pytest.raises(UnknownBackend) as raised:
        known_backend(name)
    assert raised.value.got == name and raised.value.hint == hint


def _product_graph(path: Path, weight: NDArray[np.int8]) -> GraphSpec:
    """y = x @ weight with Q/DQ pairs of scale 1, in the form of a MatMul of the encoder."""
    rows, columns = weight.shape
    constants = {
        "one": np.float32(1), "zero": np.int8(0), "w": weight,
        "w.scale": np.ones(columns, np.float32), "w.zero": np.zeros(columns, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["v"], axis=1),
        helper.make_node("MatMul", ["d", "v"], ["y"], name="y"),
    ]
    value = lambda name, n: helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4, n))
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "product", [value("x", rows)], [value("y", columns)], stored)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return GraphSpec(
        (TensorSpec("x", "float32", (1, 4, rows), ""),),
        (TensorSpec("y", "float32", (1, 4, columns), ""),),
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("largest", [64, 127])
def test_small_weights_are_exact_in_fast_kernels(
    tmp_path: Path, backend: str, largest: int
) -> None:
    """The largest activations and weights of one sign, where sums of two products are largest."""
    pytest.importorskip(backend)
    x = np.full((1, 4, 64), 127, np.float32)
    x[0, 1], x[0, 2, ::2] = -127, -127
    weight = np.full((64, 32), largest, np.int8)
    weight[:, ::2] = -largest
    weight[::2, 1::4] = -largest
    spec = _product_graph(tmp_path / "m.onnx", weight)
    executed = executed_kernels(backend, tmp_path / "m.onnx", ["y"], {"x": x}, small_weights=True)
    assert executed.int8 == 1
    expected = x.astype(np.int64) @ weight.astype(np.int64)
    content = Content(small_weights=True)
    with open_session(backend, tmp_path / "m.onnx", spec, content=content) as session:
        found = session.infer({"x": x})["y"]
    if largest == 64:
        np.testing.assert_array_equal(found, expected)
    elif (
        backend == "onnxruntime" and not has_int8_dot_product()
    ):  # what the flag must not be set for
        assert np.abs(found - expected).max() > 0.1 * np.abs(expected).max()


def test_precise_kernels_but_for_small_weights() -> None:
    precise = "session.x64quantprecision"
    assert session_options(1).get_session_config_entry(precise) == "1"
    assert session_options(1, small_weights=True).get_session_config_entry(precise) == "0"


@pytest.mark.parametrize(
    ("precision", "dot", "expected"),
    [
        ("int8", False, "onnxruntime"), ("int8_fp16", False, "onnxruntime"),
        ("int8", True, "openvino"), ("fp32", False, "openvino"), ("fp16", False, "openvino"),
    ],
)  # fmt: skip
def test_auto_takes_the_backend_with_fast_int8_kernels(
    bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dot: bool, expected: str
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("save_deploy.runtime.session.open.has_int8_dot_product", lambda: dot)
    with opened(bundle_fp32, "auto", precision=precision) as session:
        assert session.backend == expected
