"""Large matrix products, timed in the same rounds, which give the peak rate of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from save_deploy.bundle import GraphSpec, TensorSpec
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime.bench.entries import is_int8
from save_deploy.runtime.compare.entries import Entry
from save_deploy.runtime.compare.process import Answer, Call
from save_deploy.runtime.eager_mode import EagerMode, device_text
from save_deploy.runtime.session import GPU_BACKENDS, default_threads, open_session
from save_deploy.runtime.session.open import Content

GEMM_SIDE = 2048
GEMM_SPEC = GraphSpec(
    inputs=(TensorSpec("a", "float32", (GEMM_SIDE, GEMM_SIDE), "left factor"),),
    outputs=(TensorSpec("c", "float32", (GEMM_SIDE, GEMM_SIDE), "product with a constant"),),
)


@dataclass(frozen=True)
class Gemm:
    """One large product, float32 (never TF32) or INT8.

    path: ONNX file of a backend; None for torch's product on `device`, where its factors stay.
    """

    backend: str
    path: Path | None = None
    int8: bool = False
    threads: int | None = None
    device: str = "cpu"

    @property
    def device_text(self) -> str:
        return device_text(self.device)

    @property
    def name(self) -> str:
        return f"gemm{'-int8' if self.int8 else ''} ({self.backend})"

    def __call__(self) -> Call:
        a = np.random.default_rng(0).random((GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
        threads = self.threads or default_threads()
        if self.path is not None:
            session = open_session(
                self.backend, self.path, GEMM_SPEC, threads=threads,
                content=Content(small_weights=self.int8),
            )  # fmt: skip
            return lambda: session.infer({"a": a})["c"][:1, :1]
        import torch

        from save_deploy.runtime.eager import arithmetic

        torch.set_num_threads(threads)
        left = torch.from_numpy(a).to(self.device)
        out = torch.empty_like(left)

        def call() -> Answer:
            with arithmetic(EagerMode(self.device)):
                torch.mm(left, left, out=out)
            return out[:1, :1].cpu().numpy()  # waits for the product

        return call


@dataclass(frozen=True)
class Yardsticks:
    """Graphs that measure the machine; None when not measured.

    empty: no computation, for the overhead of a call.
    gemm, gemm_int8: multiplication by a constant (GEMM_SPEC).
    """

    empty: Path | None = None
    gemm: Path | None = None
    gemm_int8: Path | None = None

    def gemms(self, entries: Sequence[Entry]) -> list[Gemm]:
        """Return torch's product and those of each backend.

        INT8 products are included for backends with INT8 entries.
        """
        threads = entries[0].threads if entries else None
        on = next((e.eager.mode.device for e in entries if e.eager), "cpu")
        found = [Gemm("torch", threads=threads, device=on)]
        for path, int8 in ((self.gemm, False), (self.gemm_int8, True)):
            backends = dict.fromkeys(
                e.backend
                for e in entries
                if e.graph
                and (is_int8(e) or not int8)
                # a product whose factors travel to the GPU and back measures the way
                and e.backend not in GPU_BACKENDS
            )
            found += [Gemm(b, path, int8, threads) for b in backends if path is not None]
        return found


def gflops(gemm: LatencyResult) -> float:
    """Return the rate of the large product in 1e9 operations (multiply, add) per second."""
    return 2 * GEMM_SIDE**3 / gemm.p50_ms / 1e6
