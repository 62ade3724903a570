"""Does TensorRT-RTX run on this GPU? python rtx_probe.py --out OUT BUNDLE

Engines of one bundle for: no compute capability named (documented: runs on every supported GPU),
the GPU that is here (CURRENT), SM80, SM89. For each: did it build, what the library says of its
header, does it load, does it run, is it right, how fast; and the lines the library logs on the way.
Documented calls only. Writes OUT/rtx.json after every step. Without a GPU engines are built and
refused, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt_rtx as trt

from save_deploy.bundle import Arrays, Manifest
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.session.tensorrt import TensorRtSession

CAPABILITIES = {"unset": (), "current": ("CURRENT",), "sm80": ("SM80",), "sm89": ("SM89",)}
LINES: list[str] = []


class Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: Any, text: str) -> None:
        if int(severity) <= int(trt.ILogger.Severity.INFO):
            LINES.append(f"{severity.name}: {text[:400]}")


def build(log: Log, onnx: Path, capabilities: tuple[str, ...], out: Path) -> str:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        return f"parser: {parser.get_error(0).desc()[:300]}"
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = len(capabilities)
    for i, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    begun = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return "builder gave None"
    out.write_bytes(bytes(plan))
    mask = bytes(plan)[32:36].hex()
    seconds = time.perf_counter() - begun
    return f"built in {seconds:.1f} s, {plan.nbytes / 2**20:.1f} MiB, targets mask {mask}"


def validity(log: Log, path: Path) -> str:
    runtime = trt.Runtime(log)
    word, why = runtime.get_engine_validity(path.read_bytes()[: runtime.engine_header_size])
    known = trt.EngineInvalidityDiagnostics.__members__.items()
    return f"{word.name} {[name for name, flag in known if int(why) & int(flag)]}"


def load(log: Log, path: Path) -> str:
    engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        return "refused"
    context = engine.create_execution_context()
    return f"engine loaded; context {'made' if context is not None else 'refused'}"


def run(path: Path, manifest: Manifest, folder: Path) -> dict[str, Any]:
    golden = read_golden(folder, manifest)
    feeds: list[Arrays] = [
        {"image": image[None], "audio_embedding": heard.reshape(1, -1)}
        for image, heard in zip(golden.image, golden.answers.audio_embedding, strict=True)
    ]
    found = {}
    for graph in (False, True):
        with TensorRtSession(
            path, manifest.model, library="tensorrt_rtx", cuda_graph=graph, cache_dir=path.parent
        ) as session:
            begun = time.perf_counter()
            session.infer(feeds[0])
            first = time.perf_counter() - begun
            logits = np.concatenate([session.infer(feed)["mask_logits"][:, 0] for feed in feeds])
            reference = golden.answers.mask_logits.reshape(logits.shape)
            ms = []
            for _ in range(200):
                begun = time.perf_counter()
                session.infer(feeds[0])
                ms.append((time.perf_counter() - begun) * 1e3)
        found["graph" if graph else "plain"] = {
            "first_s": first, "p50_ms": statistics.median(ms),
            "max_abs": float(np.abs(logits - reference).max()),
            "masks": float(((logits > 0) == (reference > 0)).mean()),
        }  # fmt: skip
    return found


def attempt(row: dict[str, Any], what: str, call: Callable[[], Any]) -> None:
    LINES.clear()
    try:
        row[what] = call()
    except BaseException as error:
        row[what] = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    row[f"{what}_log"] = [x for x in LINES if not x.startswith("INFO")][:20] or LINES[-3:]
    print(f"  {what}: {row[what]}", flush=True)
    for line in row[f"{what}_log"]:
        print(f"      {line[:300]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    manifest, log = Manifest.read(options.bundle), Log()
    told: dict[str, Any] = {"version": trt.__version__}
    onnx = options.bundle / "model.onnx"
    work = Path(tempfile.mkdtemp(prefix="rtx-"))
    for name, capabilities in CAPABILITIES.items():
        path, row = work / f"{name}.plan", dict[str, Any]()
        told[name] = row
        print(name, capabilities, flush=True)
        steps: dict[str, Callable[[], Any]] = {
            "build": lambda caps=capabilities, to=path: build(log, onnx, caps, to),  # type: ignore[misc]
            "validity": lambda of=path: validity(log, of),  # type: ignore[misc]
            "load": lambda of=path: load(log, of),  # type: ignore[misc]
            "run": lambda of=path: run(of, manifest, options.bundle),  # type: ignore[misc]
        }
        for what, call in steps.items():
            attempt(row, what, call)
            (options.out / "rtx.json").write_text(json.dumps(told, indent=1))
            if not path.is_file() or (what == "load" and "loaded" not in str(row[what])):
                break


if __name__ == "__main__":
    main()
