"""Bundles on ONNX Runtime's CUDA provider with each of its options, through the product's own session.

    python ort_table.py --out OUT BUNDLE...

For each bundle: which nodes run where and which take longest, by ONNX Runtime's own profile; then a
row for each set of options: seconds until it is ready, agreement with the eager model's golden
logits, finite or not, milliseconds from host to host and of device arrays. Writes OUT/ort.json
after every step. Without a GPU everything runs on the CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # first: its CUDA libraries serve ONNX Runtime

from save_deploy.bundle import Arrays, Manifest
from save_deploy.libraries import import_onnxruntime
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.engine_check import probe_machine
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.session import CudaOptions
from save_deploy.runtime.session.ort import CPU, CUDA, session_options
from save_deploy.runtime.session.ort_gpu import OrtGpuSession

GPU = torch.cuda.is_available()
PROVIDER = CUDA if GPU else CPU
ROWS = {
    "plain": CudaOptions(graph=False),
    "graph": CudaOptions(),
    "graph tf32": CudaOptions(tf32=True),
    "graph nhwc": CudaOptions(nhwc=True),
}


def p50(call: Callable[[], object], seconds: float, most: int = 300) -> float:
    for _ in range(3):
        call()
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < most and (len(samples) < 10 or time.perf_counter() - begun < seconds):
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e3)
    return statistics.median(samples)


class Told:
    """Everything found so far, written after every step."""

    def __init__(self, path: Path) -> None:
        self.path, self.values = path, dict[str, Any]()

    def step(self, row: dict[str, Any], name: str, call: Callable[[], Any]) -> None:
        """One step; what fails is written down and does not stop the others."""
        start = time.perf_counter()
        try:
            row[name] = call()
        except BaseException as error:
            row[name] = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:600]}"
            traceback.print_exc(limit=3)
        print(f"  {name}: {row[name]} [{time.perf_counter() - start:.1f} s]", flush=True)
        self.path.write_text(json.dumps(self.values, indent=1, default=str))


def profile(model: Path, feed: Arrays) -> dict[str, Any]:
    """Executed nodes by provider in three runs, with copies, and the operators that take longest."""
    options = session_options(4)
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(tempfile.mkdtemp()) / "p")
    plain = CudaOptions(graph=False).provider_options()
    asked: list[Any] = [(CUDA, plain), CPU] if GPU else [CPU]
    session = import_onnxruntime().InferenceSession(str(model), options, providers=asked)
    for _ in range(3):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    by: Counter[str] = Counter()
    us: Counter[str] = Counter()
    for event in nodes:
        provider = event["args"].get("provider", "?").removesuffix("ExecutionProvider")
        by[provider] += 1
        us[f"{provider}:{event['args'].get('op_name')}"] += event["dur"]
    copies = sum("Memcpy" in name for name in us)
    return {"nodes": dict(by), "memcpy_ops": copies, "slowest_us": us.most_common(10)}


def examine(folder: Path, told: Told, seconds: float) -> None:
    manifest = Manifest.read(folder)
    model, golden = folder / "model.onnx", read_golden(folder, manifest)
    answers, spec = golden.answers, manifest.model
    feeds: list[Arrays] = [
        {"image": image[None], "audio_embedding": heard.reshape(1, -1)}
        for image, heard in zip(golden.image, answers.audio_embedding, strict=True)
    ]
    row = told.values[folder.name] = dict[str, Any]()
    print(folder.name, manifest.precision["precision"], spec.inputs[0].shape, flush=True)
    told.step(row, "profile", lambda: profile(model, feeds[0]))
    for label, options in ROWS.items():

        def measured(options: CudaOptions = options) -> dict[str, Any]:
            start = time.perf_counter()
            with OrtGpuSession(
                model, spec, provider=PROVIDER, cuda=options,
                weights=weight_files(model, manifest.files),
            ) as session:  # fmt: skip
                logits = np.concatenate(
                    [session.infer(feed)["mask_logits"][:, 0] for feed in feeds]
                )
                ready = time.perf_counter() - start
                reference = answers.mask_logits.reshape(logits.shape)
                found = {
                    "captured": GPU and session.cuda.graph, "ready_s": ready,
                    "finite": bool(np.isfinite(logits).all()),
                    "max_abs": float(np.abs(logits - reference).max()),
                    "masks": float(((logits > 0) == (reference > 0)).mean()),
                    "host_ms": p50(lambda: session.infer(feeds[0]), seconds),
                }  # fmt: skip
                if GPU:
                    given = {
                        name: torch.from_numpy(np.ascontiguousarray(array)).cuda()
                        for name, array in feeds[0].items()
                    }
                    found["device_ms"] = p50(lambda: session.infer_device(given), seconds)
            return found

        told.step(row, label, measured)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing a row")
    parser.add_argument("bundles", nargs="*", type=Path)
    options = parser.parse_args()
    told = Told(options.out / "ort.json")
    told.values["onnxruntime"] = import_onnxruntime().__version__
    told.step(told.values, "machine", lambda: probe_machine().to_dict())
    for folder in options.bundles:
        try:
            examine(folder, told, options.seconds)
        except Exception:  # the next bundle may still run
            traceback.print_exc()


if __name__ == "__main__":
    main()
