"""Eager SAVE against the merged model on one GPU, with torch alone: time, agreement, memory, floor.

    python torch_table.py --out OUT [--models builtin vit_b vit_h] [--res 256 1024] [--quick]

Writes OUT/torch_MODEL_RES_bN.json after every contender and prints one table a model. Weights are
random (time does not depend on them) but for `builtin`. Errors are against eager float64 (--double)
or eager float32. `dev ms`: between CUDA events; `frame ms`: from a frame in host memory to float32
logits there. Without a GPU everything runs on the CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from save_deploy.config import SaveConfig
from save_deploy.export.merge.deploy import DeployModel, FrameModel
from save_deploy.export.merge.forms import forms_for
from save_deploy.export.merge.proof import count_macs
from save_deploy.model.save import SaveModel

GPU = torch.cuda.is_available()
DEV = "cuda" if GPU else "cpu"
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
TINY: dict[str, Any] = dict(
    name="vit_t", embed_dim=32, depth=3, num_heads=2, global_blocks=(2,), window_size=3,
    audio_hidden=24, audio_channels=(4, 4, 8, 8, 8, 8), audio_fc=16,
)  # fmt: skip
Run = Callable[[Tensor, Tensor], Tensor]


def sync() -> None:
    if GPU:
        torch.cuda.synchronize()


def tf32(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def free() -> None:
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


@torch.no_grad()
def randomise(model: SaveModel) -> None:
    """As checkpoints/random.py, on the device the weights are on."""
    random = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.normal_(generator=random)
        if "norm" in name and name.endswith("weight"):
            parameter.mul_(0.1).add_(1.0)
        elif parameter.ndim < 2 or "rel_pos" in name or "pos_embed" in name:
            parameter.mul_(0.1)
        else:
            parameter.mul_(parameter[0].numel() ** -0.5)


def build(name: str, res: int) -> SaveModel:
    """The eager model on the device. tiny: for a dry run."""
    if name == "builtin":
        from save_deploy.checkpoints import load_model

        return load_model(res=res).to(DEV)
    config = SaveConfig(res=res, **TINY) if name == "tiny" else SaveConfig.preset(name, res=res)
    model = SaveModel(config).to(DEV)
    randomise(model)
    return model.eval().requires_grad_(False)


def merged(model: SaveModel, target: str, res: int) -> DeployModel:
    return DeployModel(model, forms_for(target, res=res)).eval().requires_grad_(False).to(DEV)


def cast(frame: FrameModel, dtype: torch.dtype) -> FrameModel:
    """In another type: SAM computes its dense positions in float32, whatever the model."""
    frame = copy.deepcopy(frame)
    positions = frame.model.prompt_encoder.get_dense_pe().to(dtype)
    frame.to(dtype)
    frame.model.prompt_encoder.get_dense_pe = lambda: positions
    return frame


class Call:
    """run(image, embedding) on fixed device buffers; graph: replayed from one capture."""

    def __init__(self, run: Run, image: Tensor, embedding: Tensor, graph: bool) -> None:
        self.run, self.image, self.embedding, self.graph = run, image, embedding, None
        with torch.inference_mode():
            if not graph:
                self.out = run(image, embedding)
                return
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    run(image, embedding)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = run(image, embedding)

    def __call__(self) -> Tensor:
        if self.graph is not None:
            self.graph.replay()
        else:
            with torch.inference_mode():
                self.out = self.run(self.image, self.embedding)
        return self.out


def device_ms(call: Callable[[], object], seconds: float, most: int = 200) -> list[float]:
    for _ in range(3):
        call()
    sync()
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < most and (len(samples) < 10 or time.perf_counter() - begun < seconds):
        if GPU:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e3)
    return samples


def frame_ms(call: Call, seconds: float, most: int = 200) -> list[float]:
    host_in, host_out = call.image.cpu(), torch.empty(call.out.shape, dtype=SINGLE)
    if GPU:
        host_in, host_out = host_in.pin_memory(), host_out.pin_memory()
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < most and (len(samples) < 10 or time.perf_counter() - begun < seconds):
        start = time.perf_counter()
        call.image.copy_(host_in, non_blocking=True)
        host_out.copy_(call(), non_blocking=True)  # converts on the device where needed
        sync()
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def ceilings() -> dict[str, Any]:
    """TFLOP/s of a large product of each type and GB/s of a large copy, on random data."""
    side, found = (8192 if GPU else 128), dict[str, Any]()

    def rate(call: Callable[[], object], work: float) -> float:
        return work / (statistics.median(device_ms(call, 0.3, most=20)) / 1e3)

    types = (("fp32", SINGLE, False), ("tf32", SINGLE, True), ("fp16", HALF, False))
    for label, dtype, on in (*types, ("bf16", BRAIN, False)):
        tf32(on)
        a, b = (torch.randn(side, side, device=DEV, dtype=dtype) for _ in range(2))
        found[label] = rate(lambda a=a, b=b: a @ b, 2 * side**3) / 1e12  # type: ignore[misc]
    tf32(False)
    x = torch.randn((2**30 if GPU else 2**20) // 4, device=DEV)
    y = torch.empty_like(x)
    found["copy_gbs"] = rate(lambda: y.copy_(x), 2 * x.numel() * 4) / 1e9
    return found


def against(reference: Tensor, got: Tensor) -> dict[str, Any]:
    ref, found = reference.double().flatten(1), got.double().flatten(1)
    bad = int((~torch.isfinite(found)).sum())
    return {
        "rel_l2": None if bad else float((found - ref).norm() / ref.norm()),
        "max_abs": None if bad else float((found - ref).abs().max()),
        "mask_agreement": float(((found > 0) == (ref > 0)).double().mean()),
        "not_finite": bad,
    }


Contender = tuple[str, str, bool, Callable[[], Run]]


def contenders(model: SaveModel, res: int) -> list[Contender]:
    """(name, the rate it is held against, CUDA graph?, maker), the most telling first."""

    def eager(dtype: torch.dtype = SINGLE) -> Run:
        frame = FrameModel(model)
        module = frame if dtype == SINGLE else cast(frame, dtype)
        return lambda image, heard: module(image, heard.to(dtype))

    def autocast(*, compiled: bool = False) -> Run:
        inner = torch.compile(model.forward_embedding) if compiled else model.forward_embedding

        def run(image: Tensor, heard: Tensor) -> Tensor:
            with torch.autocast(DEV, dtype=HALF):
                return inner(image, heard)

        return run

    def deploy(target: str, dtype: torch.dtype = SINGLE, *, compiled: bool = False) -> Run:
        module: nn.Module = merged(model, target, res).to(dtype)
        if compiled:
            module.compile(fullgraph=True, dynamic=False)
        return lambda image, heard: module(image, heard.to(dtype))

    on_cpu, on_trt = "portable", "tensorrt"
    return [
        ("eager fp32", "fp32", False, eager),
        ("eager tf32", "tf32", False, eager),
        ("eager amp-fp16", "fp16", False, autocast),
        ("merged fp32", "fp32", False, lambda: deploy(on_cpu)),
        ("merged fp16", "fp16", False, lambda: deploy(on_cpu, HALF)),
        ("eager fp16", "fp16", False, lambda: eager(HALF)),
        ("eager amp-fp16 compiled", "fp16", False, lambda: autocast(compiled=True)),
        ("eager fp16 graph", "fp16", True, lambda: eager(HALF)),
        ("merged fp32 graph", "fp32", True, lambda: deploy(on_cpu)),
        ("merged tf32 graph", "tf32", True, lambda: deploy(on_cpu)),
        ("merged fp16 graph", "fp16", True, lambda: deploy(on_cpu, HALF)),
        ("merged bf16 graph", "bf16", True, lambda: deploy(on_cpu, BRAIN)),
        ("merged-trt fp16 graph", "fp16", True, lambda: deploy(on_trt, HALF)),
        ("merged fp16 compiled graph", "fp16", True, lambda: deploy(on_cpu, HALF, compiled=True)),
    ]


def reference_of(
    model: SaveModel, image: Tensor, heard: Tensor, double: bool
) -> tuple[str, Tensor]:
    tf32(False)
    with torch.inference_mode():
        if double:
            return "eager fp64", cast(FrameModel(model), torch.float64)(image, heard.double())
        return "eager fp32", model.forward_embedding(image, heard)


def inputs_of(batch: int, res: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, res, res, 3), generator=random, dtype=torch.uint8)
    return image.to(DEV), torch.rand(batch, 128, generator=random).to(DEV)


def measure(
    row: Contender, image: Tensor, heard: Tensor, ref: Tensor, seconds: float
) -> dict[str, Any]:
    """One contender, opened, compared and timed; what it raises is its result."""
    name, peak, graph, make = row
    found: dict[str, Any] = {"name": name, "peak": peak}
    try:
        tf32(peak == "tf32")
        free()
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        call = Call(make(), image, heard, graph)
        sync()
        found["open_s"] = time.perf_counter() - begun
        found |= against(ref, call())
        samples, frames = device_ms(call, seconds), frame_ms(call, seconds)
        found |= {
            "p50_ms": statistics.median(samples), "min_ms": min(samples), "n": len(samples),
            "frame_p50_ms": statistics.median(frames),
            "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if GPU else 0.0,
        }  # fmt: skip
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return found


def run(name: str, res: int, options: argparse.Namespace, top: dict[str, Any]) -> None:
    begun = time.perf_counter()
    model = build(name, res)
    image, heard = inputs_of(options.batch, res)
    label, ref = reference_of(model, image, heard, options.double)
    shapes = (
        torch.empty(1, res, res, 3, dtype=torch.uint8, device="meta"),
        torch.empty(1, 128, device="meta"),
    )
    macs = [count_macs(m, *shapes) for m in (FrameModel(model), merged(model, "portable", res))]
    told: dict[str, Any] = {
        "model": name, "res": res, "batch": options.batch, "macs_eager": macs[0],
        "macs_merged": macs[1], "gpu": torch.cuda.get_device_name() if GPU else "cpu",
        "torch": torch.__version__, "reference": label, "ceilings": top,
        "ready_s": time.perf_counter() - begun, "rows": [],
    }  # fmt: skip
    rows = contenders(model, res)
    for row in rows[:5] if options.quick else rows:
        if (row[2] and not GPU) or ("compiled" in row[0] and options.no_compile):
            continue
        if time.perf_counter() - begun > options.budget:
            told["stopped"] = f"at {options.budget:.0f} s, before {row[0]}"
            break
        found = measure(row, image, heard, ref, options.seconds)
        if "p50_ms" in found:
            done = 2 * options.batch * macs[not row[0].startswith("eager")]
            found["tflops"] = done / found["p50_ms"] / 1e9
        told["rows"].append(found)
        path = options.out / f"torch_{name}_{res}_b{options.batch}.json"
        path.write_text(json.dumps(told, indent=1))
    table(told, top)


def table(told: dict[str, Any], top: dict[str, Any]) -> None:
    print(
        f"\n{told['model']} {told['res']} px, batch {told['batch']}, {told['gpu']}, torch "
        f"{told['torch']}; {told['macs_eager'] / 1e9:.1f} -> {told['macs_merged'] / 1e9:.1f} GMAC a "
        f"frame; errors against {told['reference']}; {told.get('stopped', 'all done')}"
    )
    print(
        f"{'contender':28}{'dev ms':>8}{'FPS':>7}{'frame ms':>9}{'TFLOPS':>8}{'of gemm':>8}", end=""
    )
    print(f"{'MiB':>7}{'rel l2':>9}{'max abs':>9}{'masks':>9}{'open s':>7}")
    for row in told["rows"]:
        if "failed" in row:
            print(f"{row['name']:28} FAILED {row['failed'][:120]}")
            continue
        number = lambda v: "nan" if v is None else f"{v:.1e}"
        fps, share = told["batch"] * 1e3 / row["p50_ms"], row["tflops"] / top[row["peak"]]
        print(
            f"{row['name']:28}{row['p50_ms']:8.2f}{fps:7.1f}{row['frame_p50_ms']:9.2f}"
            f"{row['tflops']:8.1f}{share:8.1%}{row['peak_mib']:7.0f}{number(row['rel_l2']):>9}"
            f"{number(row['max_abs']):>9}{row['mask_agreement']:9.5f}{row['open_s']:7.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--models", nargs="+", default=["vit_b"])
    parser.add_argument("--res", nargs="+", type=int, default=[256])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds a model")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing a contender")
    parser.add_argument("--quick", action="store_true", help="the first five contenders")
    parser.add_argument("--double", action="store_true", help="errors against float64")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    top = ceilings()
    print({k: round(v, 1) for k, v in top.items()}, flush=True)
    for name in options.models:
        for res in options.res:
            try:
                run(name, res, options, top)
            except Exception:  # the next model may still run
                traceback.print_exc()
            free()


if __name__ == "__main__":
    main()
