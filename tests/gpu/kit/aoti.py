"""The merged model as an AOTInductor package: python aoti.py --out OUT [--model builtin] [--res 256]

torch.export -> .pt2 (compiled for this device), loaded back and timed, on a GPU also as a CUDA
graph of the loaded package. Writes OUT/aoti.json after every type: size, seconds to compile and to
load, error, ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_table import GPU, Call, against, build, device_ms, inputs_of, merged, reference_of, tf32


class Typed(nn.Module):
    """Float32 in and out, whatever is between."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, image: Tensor, audio_embedding: Tensor) -> Tensor:
        return self.inner(image, audio_embedding.to(self.dtype)).float()


def package(module: nn.Module, image: Tensor, heard: Tensor, row: dict[str, Any]) -> Any:
    """-> the loaded package; times and size go into the row."""
    path = Path(tempfile.mkdtemp(prefix="aoti-")) / "model.pt2"
    with torch.no_grad():
        begun = time.perf_counter()
        program = torch.export.export(module, (image, heard))
        row["export_s"], begun = time.perf_counter() - begun, time.perf_counter()
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        row["compile_s"], begun = time.perf_counter() - begun, time.perf_counter()
        loaded = torch._inductor.aoti_load_package(str(path))
        row["load_s"] = time.perf_counter() - begun
    row["mib"] = path.stat().st_size / 2**20
    return loaded


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--res", type=int, default=256)
    parser.add_argument("--dtypes", nargs="+", default=["float16", "float32"])
    options = parser.parse_args()
    model = build(options.model, options.res)
    image, heard = inputs_of(1, options.res)
    label, reference = reference_of(model, image, heard, True)
    told: list[dict[str, Any]] = []
    for name in options.dtypes:
        dtype = getattr(torch, name)
        tf32(False)
        row: dict[str, Any] = {"dtype": name, "reference": label}
        try:
            module = Typed(merged(model, "portable", options.res), dtype)
            loaded = package(module, image, heard, row)
            for graph in (False, True) if GPU else (False,):
                call = Call(loaded, image, heard, graph)
                row |= against(reference, call())
                row["graph_p50_ms" if graph else "p50_ms"] = statistics.median(device_ms(call, 1.0))
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
        print(row, flush=True)
        told.append(row)
        (options.out / "aoti.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
