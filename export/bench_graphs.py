"""Graphs to benchmark: the eager model exported unchanged, and merged in selected forms."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from save_deploy.bundle import Arrays, GraphSpec, model_spec
from save_deploy.calibration.observe import Observer, observe
from save_deploy.calibration.pairs import Pairs
from save_deploy.calibration.select import MIN_PAIRS, select_pairs
from save_deploy.checkpoints import builtin_path, load_model
from save_deploy.children import safe_path
from save_deploy.config import AUDIO_DIM
from save_deploy.errors import SaveDeployError
from save_deploy.export.fp16 import plan_fp16
from save_deploy.export.graph import save_graph, trace, write_graph
from save_deploy.export.memory import score_bytes
from save_deploy.export.merge.deploy import DeployModel, FrameModel
from save_deploy.export.merge.forms import ADAPTER, REL_POS, WINDOWS, Forms, forms_for
from save_deploy.export.merge.proof import count_macs
from save_deploy.export.quantize.qdq import insert_qdq
from save_deploy.export.quantize.sites import find_sites
from save_deploy.export.quantize.weights import FORMATS, quantize_weight, scale_of, weight_format
from save_deploy.export.trace import OPSET
from save_deploy.libraries import import_onnxruntime
from save_deploy.model.save import SaveModel
from save_deploy.runtime.bench.entries import Subject
from save_deploy.runtime.bench.yardsticks import GEMM_SIDE
from save_deploy.runtime.compare.entries import EagerSource
from save_deploy.runtime.eager import eager_pipeline

DATA = "scenes"  # the data does not affect speed
N_INPUTS = 8
_CHOICES = {"windows": WINDOWS, "rel_pos": REL_POS, "adapter": ADAPTER}


def parse_forms(name: str, *, res: int) -> Forms:
    """Parse the name of a merged graph.

    "merged" is the portable forms; "merged:windows=late_pad+adapter=matmul" changes some of them.
    Raises SaveDeployError for an unknown key or value.
    """
    forms = forms_for("portable", res=res)
    _, _, changes = name.partition(":")
    for change in filter(None, changes.split("+")):
        key, _, value = change.partition("=")
        if key not in forms.to_dict() or value not in _CHOICES.get(key, ("on", "off")):
            expected = [f"{k}={'|'.join(v)}" for k, v in _CHOICES.items()]
            expected += [f"{k}=on|off" for k in forms.to_dict() if k not in _CHOICES]
            raise SaveDeployError("unknown form", got=change, expected=", ".join(expected))
        chosen = value if key in _CHOICES else value == "on"
        forms = replace(forms, **{key: chosen})  # type: ignore[arg-type]
    return forms


def write_variants(
    names: Sequence[str], folder: Path, *, checkpoint: Path | None, sam: Path | None, res: int,
    batch: int,
) -> tuple[Subject, dict[str, Path]]:  # fmt: skip
    """Write naive, merged..., fp16, int8 and naive-int8 as ONNX files; return them by name.

    Also returns the Subject with config, parameter size and multiplications of the model. Runs in a
    separate process, so that its memory does not affect later measurements.
    """
    context = multiprocessing.get_context("spawn")
    with safe_path(), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_write, list(names), folder, checkpoint, sam, res, batch).result()


def _write(
    names: list[str], folder: Path, checkpoint: Path | None, sam: Path | None, res: int, batch: int
) -> tuple[Subject, dict[str, Path]]:
    model = load_model(checkpoint, res=res, sam=sam)
    spec = model_spec(model.config, batch)
    frames = torch.empty(batch, res, res, 3, dtype=torch.uint8, device="meta")
    sounds = torch.empty(batch, AUDIO_DIM, device="meta")
    files: dict[str, Path] = {}
    if "naive-int8" in names and "naive" not in names:
        names = [*names, "naive"]
    best = DeployModel(model, forms_for("portable")).eval()
    n_bytes = sum(4 * p.numel() for p in model.parameters())
    subject = Subject(
        config=model.config,
        source=EagerSource(checkpoint or builtin_path(), sam, res, batch, n_bytes),
        threads=None,
        activation_bytes=3 * batch * score_bytes(model.config),
        macs_eager=count_macs(FrameModel(model), frames, sounds),
        macs=count_macs(best, frames, sounds),
    )
    del best
    measured = any("int8" in name or name == "fp16" for name in names)
    real = calibration_inputs(model) if measured else []
    for name in sorted(names, key=lambda n: n == "naive-int8"):  # last: it is made from naive
        path = folder / f"{name.replace(':', '_').replace('=', '-')}.onnx"
        files[name] = path
        if name == "int8":
            write_int8(model, forms_for("portable", res=res), real, spec, path)
            continue
        if name == "fp16":
            write_fp16(model, forms_for("portable", res=res), real[:1], spec, path)
            continue
        if name == "naive-int8":
            write_naive_int8(files["naive"], real, batch, path)
            continue
        module: nn.Module = FrameModel(model)
        if name != "naive":
            forms = parse_forms(name, res=res)
            module = DeployModel(model, forms).eval().requires_grad_(False)
        write_graph(module, path, spec)
    return subject, files


def calibration_inputs(model: SaveModel) -> list[Arrays]:
    """Return N_INPUTS real inputs of the model graph, one frame each."""
    pairs: Pairs = select_pairs(DATA, MIN_PAIRS, res=model.config.res).pairs
    pipeline = eager_pipeline(model)
    return [
        {"image": image[None], "audio_embedding": pipeline.embed(waveform)}
        for image, waveform in zip(pairs.image[:N_INPUTS], pairs.waveform[:N_INPUTS], strict=True)
    ]


def write_int8(
    model: SaveModel, forms: Forms, inputs: list[Arrays], spec: GraphSpec, path: Path
) -> None:  # fmt: skip
    """Write the merged graph with every encoder MatMul quantized to INT8, weights to 7 bits."""
    deploy = DeployModel(model, forms.quantizable()).eval().requires_grad_(False)
    sites = find_sites(deploy)
    observer = Observer(deploy, [s.name for s in sites])
    observe(deploy, observer, _tensors(inputs))
    graph = trace(deploy, spec)
    amax = {n: h.amax("minmax") for n, h in observer.histograms.items()}
    insert_qdq(graph, sites, amax, weight_bits=7)
    save_graph(graph, path)


def write_fp16(
    model: SaveModel, forms: Forms, inputs: list[Arrays], spec: GraphSpec, path: Path
) -> None:  # fmt: skip
    """Write the merged graph in FP16; FP32 modules and scaled scores follow from real inputs."""
    deploy = DeployModel(model, forms).eval().requires_grad_(False)
    write_graph(deploy, path, spec, fp16=plan_fp16(deploy, _tensors(inputs)))


def _tensors(inputs: list[Arrays]) -> Iterator[tuple[torch.Tensor, ...]]:
    for given in inputs:
        yield torch.from_numpy(given["image"]), torch.from_numpy(given["audio_embedding"])


def write_naive_int8(naive: Path, inputs: list[Arrays], batch: int, path: Path) -> None:
    """Quantize the eager export with the defaults of ONNX Runtime's quantize_static.

    Uses the same real inputs as write_int8.
    """
    quantization = import_onnxruntime("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.left: Iterator[Arrays] = iter(inputs)

        def get_next(self) -> Arrays | None:
            found = next(self.left, None)
            if found is None:
                return None
            return {name: np.repeat(array, batch, axis=0) for name, array in found.items()}

    quantization.quantize_static(naive, path, Reader())


def write_empty_graph(spec: GraphSpec, path: Path) -> Path:
    """Write a graph with these inputs and outputs and almost no computation.

    Its time is the overhead of a call.
    """
    reduced, nodes = [], []
    for tensor in spec.inputs:
        name = tensor.name
        first, value = f"{name}.first", f"{name}.value"
        nodes.append(helper.make_node("Slice", [name, f"{name}.start", f"{name}.end"], [first]))
        nodes.append(helper.make_node("Cast", [first], [f"{name}.float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"{name}.float"], [value], keepdims=0))
        reduced.append(value)
    nodes.append(helper.make_node("Sum", reduced, ["sum"]))
    out = spec.outputs[0]
    nodes.append(helper.make_node("Expand", ["sum", "shape"], [out.name]))
    constants = {"shape": np.array(out.shape, np.int64)}
    for tensor in spec.inputs:
        constants[f"{tensor.name}.start"] = np.zeros(len(tensor.shape), np.int64)
        constants[f"{tensor.name}.end"] = np.ones(len(tensor.shape), np.int64)
    element = lambda dtype: helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    info = lambda t: helper.make_tensor_value_info(t.name, element(t.dtype), t.shape)
    graph = helper.make_graph(
        nodes,
        "empty",
        [info(t) for t in spec.inputs],
        [info(out)],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def write_gemm_graph(path: Path, *, int8: bool = False) -> Path:
    """Write one MatMul with a constant, (GEMM_SIDE, GEMM_SIDE) each.

    int8: Q/DQ pairs as around an encoder MatMul, so that a backend runs the same kernel.
    """
    side = GEMM_SIDE
    weight = np.random.default_rng(1).random((side, side), dtype=np.float32)
    constants, nodes, factors = {"b": weight}, [], ["a", "b"]
    if int8:
        numbers, scales = quantize_weight(weight, weight_format("int8", 7), clips=(1.0,))
        constants = {
            "b": numbers, "b.scale": scales, "b.zero": np.zeros(side, np.int8),
            "a.scale": scale_of(1.0, FORMATS["int8"]), "a.zero": np.zeros((), np.int8),
        }  # fmt: skip
        nodes = [
            helper.make_node("QuantizeLinear", ["a", "a.scale", "a.zero"], ["a.int8"]),
            helper.make_node("DequantizeLinear", ["a.int8", "a.scale", "a.zero"], ["a.back"]),
            helper.make_node("DequantizeLinear", ["b", "b.scale", "b.zero"], ["b.back"], axis=1),
        ]
        factors = ["a.back", "b.back"]
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", factors, ["c"], name="c")],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, (side, side))],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, (side, side))],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10),
        path,
    )
    return path


def example_inputs(spec: GraphSpec) -> dict[str, np.ndarray]:
    """Return seeded random inputs. Time does not depend on the image content."""
    rng = np.random.default_rng(0)
    image, embedding = spec.inputs
    return {
        image.name: rng.integers(0, 256, image.shape, dtype=np.uint8),
        embedding.name: rng.random(embedding.shape, dtype=np.float32),
    }
