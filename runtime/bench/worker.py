"""A contender's own process: open, say how it went, then time one call whenever asked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Arrays
from save_deploy.errors import SaveDeployError
from save_deploy.machine import peak_memory_mib
from save_deploy.runtime.bench.contender import GEMM_SIDE, GEMM_SPEC, Contender, Subject
from save_deploy.runtime.session import default_threads, open_session

Call = Callable[[Arrays], NDArray[np.float32]]
OVERHEAD_CALLS = 200
LONG_CALL_S, SHORT_CALL_S = 2.0, 0.25


def work(
    pipe: Connection, contender: Contender, subject: Subject, inputs: Arrays, overhead: Path | None
) -> None:
    """Messages out: ("ready", report), ("ms", milliseconds), ("failed", why). In: "run" or "stop"."""
    started = time.perf_counter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    try:
        call = _open(contender, subject)
        load_s = time.perf_counter() - started
        logits = call(inputs)
        first_mask_s = time.perf_counter() - started
        report: dict[str, object] = {
            "load_s": load_s,
            "first_mask_s": first_mask_s,
            "logits": logits,
        }
        if overhead is not None:
            report["overhead_us"] = _overhead_us(contender, subject, inputs, overhead)
        short = False
        if first_mask_s - load_s < LONG_CALL_S:  # else the first call has warmed everything
            begin = time.perf_counter()
            call(inputs)
            short = time.perf_counter() - begin < SHORT_CALL_S
        report["peak_mib"] = peak_memory_mib()
        pipe.send(("ready", report))
        while pipe.recv() == "run":
            if (
                short
            ):  # the caches hold what the others did: an application would find its own there
                call(inputs)
            begin = time.perf_counter()
            call(inputs)
            pipe.send(("ms", (time.perf_counter() - begin) * 1000))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:  # whatever a backend raises is this contender's result
        text = (
            str(error) if isinstance(error, SaveDeployError) else f"{type(error).__name__}: {error}"
        )
        pipe.send(("failed", " ".join(text.split())[:300]))
    finally:
        pipe.close()
        os._exit(0)  # gigabytes of a framework need no orderly teardown


def _open(contender: Contender, subject: Subject) -> Call:
    threads = subject.threads or default_threads()
    if contender.is_yardstick:
        return _gemm(contender, threads)
    if contender.backend == "torch":
        return _torch_call(subject, threads, compiled=contender.graph == "compile")
    assert contender.path is not None
    session = open_session(contender.backend, contender.path, subject.spec, threads=threads)
    return lambda inputs: session.infer(inputs)["mask_logits"]


def _torch_call(subject: Subject, threads: int, *, compiled: bool) -> Call:
    import torch

    from save_deploy.checkpoints import load_model

    torch.set_num_threads(threads)
    model = load_model(subject.checkpoint, res=subject.res, sam=subject.sam)
    forward = torch.compile(model.forward_embedding) if compiled else model.forward_embedding

    def call(inputs: Arrays) -> NDArray[np.float32]:
        with torch.inference_mode():
            arrays = (torch.from_numpy(inputs[spec.name]) for spec in subject.spec.inputs)
            return forward(*arrays).numpy()

    return call


def _gemm(contender: Contender, threads: int) -> Call:
    """One large matrix product, float32 or 8 bits: the rate a backend reaches in the same rounds."""
    rng = np.random.default_rng(0)
    a = rng.random((GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    if contender.path is not None:
        session = open_session(contender.backend, contender.path, GEMM_SPEC, threads=threads)
        return lambda _inputs: session.infer({"a": a})["c"][:1, :1]
    import torch

    torch.set_num_threads(threads)
    left = torch.from_numpy(a)
    out = torch.empty_like(left)

    def call(_inputs: Arrays) -> NDArray[np.float32]:
        torch.mm(left, left, out=out)
        return out[:1, :1].numpy()

    return call


def _overhead_us(contender: Contender, subject: Subject, inputs: Arrays, graph: Path) -> float:
    """Median of a call to a graph with the same inputs and outputs that computes nothing."""
    samples = []
    with open_session(contender.backend, graph, subject.spec, threads=subject.threads) as session:
        for _ in range(OVERHEAD_CALLS):
            begin = time.perf_counter()
            session.infer(inputs)
            samples.append(time.perf_counter() - begin)
    return float(np.median(samples) * 1e6)
