"""Build of an engine file from an ONNX file, in a separate process so that a crash is contained.

The target file appears only when the engine is complete.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from save_deploy.errors import BackendError, ExportError
from save_deploy.export.engine import library, messages
from save_deploy.export.engine.graph import GraphFacts, read_graph
from save_deploy.export.engine.layers import STAGE, BuildLog, Kernel, read_inspector, read_log
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.receipt import Receipt, make_receipt
from save_deploy.partials import partial_folder
from save_deploy.progress import raise_if_interrupted

_TICK_S = 0.5
_SAY_EVERY_S = 5.0
_LAST_LINES = 5


@dataclass(frozen=True)
class BuildResult:
    """A finished engine.

    targets: compute capabilities.
    device: the GPU that full TensorRT built on, {} for TensorRT-RTX.
    """

    engine: Path
    library: str
    version: str
    targets: tuple[str, ...]
    device: dict[str, Any]
    receipt: Receipt
    kernels: tuple[Kernel, ...]


def build_engine(
    onnx: Path,
    out: Path,
    options: BuildOptions | None = None,
    *,
    on_line: Callable[[str], None] = lambda _: None,
) -> BuildResult:
    """Build an engine in a separate process and write it to `out`.

    on_line: called with progress lines such as `parsing` or `optimizing 45 s`.
    Raises BackendError when the library is missing, and ExportError when the library rejects the
    graph or options, when the build process crashes, and for a full disk. An interrupt stops the
    build process. Nothing is left after an error.
    """
    options = options or BuildOptions()
    module = library.choose(options.library, targets=bool(options.targets))
    facts = read_graph(onnx)
    options = options.fitted(module, facts, driver=library.has_driver())
    with partial_folder(out.absolute(), what="the engine") as folder:
        answer, log = _run_worker(module, onnx, folder, options, on_line)
        if answer["errors"]:
            raise messages.parser_error(answer["errors"], facts, onnx.name)
        if not answer.get("built"):
            raise messages.builder_error(log.errors, onnx.name)
        result = _result(out, folder, module, options, facts, answer, log)
        raise_if_interrupted()
        os.chmod(folder / "engine", 0o644)
        os.replace(folder / "engine", out)
    return result


def _result(
    out: Path,
    folder: Path,
    module: str,
    options: BuildOptions,
    facts: GraphFacts,
    answer: dict[str, Any],
    log: BuildLog,
) -> BuildResult:
    if answer.get("inspector") and not log.kernels:
        log = BuildLog(read_inspector(answer["inspector"]), 0, log.activation_bytes,
                       log.weights_bytes, log.warnings, log.errors)  # fmt: skip
    device = answer.get("device") or {}
    receipt = make_receipt(
        facts,
        log,
        engine_bytes=(folder / "engine").stat().st_size,
        build_s=answer["build_s"],
        peak_bytes=answer["peak_bytes"],
        rtx=module == "tensorrt_rtx",
    )
    targets = options.targets or ((device["capability"],) if device else ())
    return BuildResult(out, module, answer["version"], targets, device, receipt, log.kernels)


def _run_worker(
    module: str, onnx: Path, folder: Path, options: BuildOptions, on_line: Callable[[str], None]
) -> tuple[dict[str, Any], BuildLog]:
    """Run the build process and return its answer and log. Raises ExportError for a crash."""
    log, said, answer = folder / "log", folder / "output", folder / "result.json"
    job = {
        "parent": os.getpid(),
        "library": module,
        "onnx": str(onnx.absolute()),
        "engine": str(folder / "engine"),
        "log": str(log),
        "result": str(answer),
        "options": options.to_dict(),
        "timing_cache": str(options.timing_cache.absolute()) if options.timing_cache else None,
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [
        sys.executable,
        "-P",
        "-m",
        "save_deploy.export.engine.worker",
        str(folder / "job.json"),
    ]
    with said.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            stage = _follow(process, on_line)
            code = process.wait()
        finally:  # also for an interrupt
            if process.poll() is None:
                process.kill()
                process.wait()
    built = read_log(log.read_text(errors="replace") if log.is_file() else "")
    if code or not answer.is_file():
        output = said.read_text(errors="replace").strip().splitlines()
        last = [line for line in (*built.errors, *output) if line.strip()][-_LAST_LINES:]
        raise messages.crash(code, last, onnx.name, stage)
    result = json.loads(answer.read_text())
    if "refused" in result:
        kinds = {"BackendError": BackendError}
        kind = kinds.get(result["refused"].pop("kind"), ExportError)
        raise kind(result["refused"].pop("what"), **result["refused"])
    return result, built


def _follow(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> str:
    """Report stages with their seconds until the process closes its output.

    Returns the last stage.
    """
    assert process.stdout is not None
    stage, rest = "starting", b""
    started = shown = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            raise_if_interrupted()
            if selector.select(_TICK_S):
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    return stage
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:  # TensorRT prints to stdout too
                    if line.startswith(STAGE.encode()):
                        stage = line[len(STAGE) :].decode()
                        started = shown = time.monotonic()
                        on_line(stage)
            elif time.monotonic() - shown > _SAY_EVERY_S:
                shown = time.monotonic()
                on_line(f"{stage} {shown - started:.0f} s")
