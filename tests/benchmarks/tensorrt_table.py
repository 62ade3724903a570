"""The table of docs/tensorrt.md: engines that TensorRT-RTX builds from the eager and the merged model.

python -m tests.benchmarks.tensorrt_table --preset vit_b --res 256

Run from the repository root. Builds without a GPU, for SM86 (FP8: SM89). Nothing is timed: the target
GPU chooses the kernels of matrix products when it first loads an engine.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

GRAPHS = ("naive", "merged")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
HEADS = ("model", "px", "graph", "precision", "kernels", "fused attention", "INT8/FP8 MatMuls",
         "activations MB", "engine MB", "build s", "build GB", "export s", "export GB")  # fmt: skip


@dataclass(frozen=True)
class Built:
    """One line of the table. error: the builder's message when it builds nothing, else "".

    layout: kernels that only copy tensors to another layout. _mb: 10^6 bytes, _gb: 10^9 bytes, _s:
    seconds. graph: one of GRAPHS, precision: one of PRECISIONS.
    """

    model: str
    res: int
    graph: str
    precision: str
    kernels: int = 0
    fused: int = 0
    attentions: int = 0
    quantized: int = 0
    quantized_asked: int = 0
    casts: int = 0
    layout: int = 0
    activation_mb: float = 0.0
    engine_mb: float = 0.0
    build_s: float = 0.0
    build_gb: float = 0.0
    export_s: float = 0.0
    export_gb: float = 0.0
    warnings: tuple[str, ...] = ()
    modules: dict[str, int] | None = None
    error: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        head = (self.model, str(self.res), self.graph, self.precision)
        if self.error:
            return (*head, f"does not build: {self.error}", *[""] * (len(HEADS) - len(head) - 1))
        quantized = f"{self.quantized}/{self.quantized_asked}" if self.quantized_asked else "-"
        return (
            *head, str(self.kernels), f"{self.fused}/{self.attentions}", quantized,
            f"{self.activation_mb:.1f}", f"{self.engine_mb:.1f}", f"{self.build_s:.1f}",
            f"{self.build_gb:.2f}", f"{self.export_s:.0f}", f"{self.export_gb:.1f}",
        )  # fmt: skip


def measure(preset: str, res: int, graph: str, precision: str, target: str = "SM86") -> Built:
    """Export and build, each in its own process: all its memory is freed when it ends."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            facts = pool.submit(export, preset, res, graph, precision, path).result()
        return _build(Built(preset, res, graph, precision, **facts), path, target)


def export(preset: str, res: int, graph: str, precision: str, path: Path) -> dict[str, Any]:
    """Write the graph to path -> export_s (seconds) and export_gb (peak memory of this process).

    preset: a preset of SaveConfig with random weights, or `built-in` for the shipped checkpoint.
    """
    import onnx_ir as ir
    import torch

    from save_deploy.bundle import model_spec
    from save_deploy.export.fp16 import (
        FP32_OPS,
        Fp16Plan,
        drop_unused_weights,
        to_fp16,
    )
    from save_deploy.export.graph import save_graph
    from save_deploy.export.merge.deploy import DeployModel
    from save_deploy.export.merge.forms import forms_for
    from save_deploy.export.quantize import find_sites, insert_qdq
    from save_deploy.export.trace import graph_from_module

    started = time.monotonic()
    torch.set_num_threads(1)
    model = _model(preset, res)
    spec = model_spec(model.config)
    forms = forms_for("tensorrt", res=res)
    deploy: torch.nn.Module = _eager(model)
    if graph == "merged":
        # TensorRT has no BF16 transposed convolution, and quantizes none
        forms = forms if precision in ("fp32", "fp16") else forms.quantizable()
        deploy = DeployModel(model, forms).eval().requires_grad_(False)
    example = tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in spec.inputs)
    names = [s.name for s in spec.inputs]
    traced: ir.Model = graph_from_module(deploy, example, inputs=names, output="mask_logits")
    if precision in ("int8", "fp8"):
        assert isinstance(deploy, DeployModel)
        products = find_sites(deploy)
        ranges = {p.name: 4.0 for p in products}  # kernels do not depend on them
        insert_qdq(traced, products, ranges, fmt=precision)
    if precision != "fp32":  # eager: all FP16, as .half() makes it; merged: softmax in FP32
        plan = Fp16Plan("fp16", FP32_OPS if graph == "merged" else (), (), 0, {})
        if preset == "built-in" and graph == "merged":
            plan = _measured_plan(model, deploy)
        to_fp16(traced, plan)
        drop_unused_weights(traced)
    save_graph(traced, path)
    if precision == "bf16":
        _to_bf16(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"export_s": time.monotonic() - started, "export_gb": peak / 1e9}


def _model(preset: str, res: int) -> Any:
    from save_deploy.checkpoints import load_model
    from save_deploy.checkpoints.random import write_random_checkpoint
    from save_deploy.config import SaveConfig

    if preset == "built-in":
        return load_model(None, res=res)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        write_random_checkpoint(path, SaveConfig.preset(preset, res=res))
        return load_model(path, res=res)


def _eager(model: Any) -> Any:
    """The eager model from frame to mask. Casts uint8 first: TensorRT cannot transpose uint8."""
    import torch

    from save_deploy.export.merge.deploy import FrameModel

    class Eager(FrameModel):
        def forward(self, frames: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            return super().forward(frames.float(), audio)

    return Eager(model)


def _measured_plan(model: Any, deploy: Any) -> Any:
    """FP32 modules and scaled scores of the built-in checkpoint, measured on four drawn scenes."""
    import torch

    from save_deploy.calibration.pairs import collect_pairs
    from save_deploy.data.open import open_dataset
    from save_deploy.export.fp16 import plan_fp16
    from save_deploy.runtime.eager import eager_pipeline
    from save_deploy.runtime.session import as_batch

    pairs = collect_pairs(open_dataset("scenes", split="val"), 4, res=model.config.res)
    pipeline = eager_pipeline(model)
    return plan_fp16(
        deploy,
        (
            (torch.from_numpy(as_batch(image)), torch.from_numpy(pipeline.embed(waveform)))
            for image, waveform in zip(pairs.image, pairs.waveform, strict=True)
        ),
    )


def _to_bf16(path: Path) -> None:
    """Change every FP16 weight, cast and value of an ONNX file to BF16, in place."""
    import ml_dtypes
    import numpy as np
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            array = numpy_helper.to_array(weight).astype(np.float32).astype(ml_dtypes.bfloat16)
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
    for value in (*model.graph.value_info, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.save(model, path)


def _build(made: Built, path: Path, target: str) -> Built:
    """Build the engine of the graph at path -> made with the counts of its receipt, or its error."""
    from save_deploy.errors import SaveDeployError
    from save_deploy.export.engine.build import build_engine
    from save_deploy.export.engine.options import BuildOptions

    target = "SM89" if made.precision == "fp8" else target
    options = BuildOptions(library="rtx", targets=(target,))
    try:
        receipt = build_engine(path, path.with_name("engine"), options).receipt
    except SaveDeployError as error:
        return Built(**{**asdict(made), "error": error.got or error.what})
    return Built(
        **{
            **asdict(made),
            "kernels": receipt.n_kernels,
            "fused": receipt.fused,
            "attentions": receipt.attentions,
            "quantized": receipt.quantised,
            "quantized_asked": receipt.quantised_asked,
            "casts": receipt.casts,
            "layout": receipt.layout_copies,
            "activation_mb": (receipt.activation_bytes or 0) / 1e6,
            "engine_mb": receipt.engine_bytes / 1e6,
            "build_s": receipt.build_s,
            "build_gb": receipt.peak_bytes / 1e9,
            "warnings": receipt.warnings,
            "modules": receipt.by_module(),
        }
    )


def main(
    preset: Annotated[list[str], typer.Option(help="vit_t, vit_b, vit_l, vit_h or built-in.")],
    res: Annotated[list[int], typer.Option(help="224, 256 or 1024.")],
    graph: Annotated[list[str], typer.Option(help=" or ".join(GRAPHS))] = list(GRAPHS),  # noqa: B006
    precision: Annotated[list[str], typer.Option(help=", ".join(PRECISIONS))] = ["fp16"],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Also append each line here, as JSON.")] = None,
) -> None:
    """Print the table in Markdown. Each line appears as soon as its engine is built."""
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for name in preset:
        for size in res:
            for number in precision:
                for form in graph:
                    if form == "naive" and number in ("int8", "fp8"):
                        continue  # Q/DQ needs the module names of the merged model
                    made = measure(name, size, form, number)
                    print(f"| {' | '.join(made.cells)} |", flush=True)
                    if out is not None:
                        with out.open("a") as file:
                            file.write(json.dumps(asdict(made)) + "\n")


if __name__ == "__main__":
    typer.run(main)
