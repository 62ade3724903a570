"""Build process of one engine: python -m save_deploy.export.engine.worker JOB.json

JOB.json names the library, the ONNX file, the options and the output files: the engine, the log
(without verbose messages, except the list of kernels) and result.json. Stages are printed to stdout
as lines that start with `@`. The process ends with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from save_deploy.errors import SaveDeployError
from save_deploy.export.engine import library as facade
from save_deploy.export.engine.layers import LISTING, STAGE
from save_deploy.machine import peak_memory_mib, read_nvidia

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(job_path: str) -> int:
    """Run the job and write result.json. Returns the exit code."""
    job = json.loads(Path(job_path).read_text())
    _die_with(job["parent"])
    try:
        with open(job["log"], "w") as log:
            result = _build(job, log)
    except SaveDeployError as error:  # raised again by the parent
        parts = {
            "what": error.what,
            "got": error.got,
            "expected": error.expected,
            "hint": error.hint,
        }
        result = {"refused": {"kind": type(error).__name__, **parts}}
    result["peak_bytes"] = int(peak_memory_mib() * 2**20)
    Path(job["result"]).write_text(json.dumps(result))
    return 0


def _build(job: dict[str, Any], log: TextIO) -> dict[str, Any]:
    trt = facade.import_library(job["library"])
    options, timing = job["options"], job["timing_cache"]

    def write(severity: str, text: str) -> None:
        if severity != "VERBOSE" or text.startswith(LISTING):
            log.write(f"[{severity}] {text}\n")
            log.flush()  # keep the last message when the process is killed

    logger = facade.make_logger(trt, write)
    _stage("parsing")
    builder = trt.Builder(logger)
    (network, _parser), errors = facade.parse(trt, builder, logger, Path(job["onnx"]))
    result: dict[str, Any] = {"version": trt.__version__, "errors": errors}
    if errors:
        return result
    config = facade.make_config(trt, builder, options)
    cache = facade.use_timing_cache(config, Path(timing)) if timing else None
    _stage("optimizing")
    plan, result["build_s"] = facade.build_plan(builder, network, config)
    if plan is None:
        return result
    _stage("writing")
    with open(job["engine"], "wb") as file:
        file.write(plan)
        file.flush()
        os.fsync(file.fileno())
    if cache is not None:
        facade.save_timing_cache(cache, Path(timing))
    if job["library"] == "tensorrt":
        result["device"] = _device()
        result["inspector"] = facade.inspect_plan(trt, logger, plan)
    result["built"] = True
    return result


def _device() -> dict[str, str | None]:
    """Return the GPU that full TensorRT built for. Not tested on a GPU."""
    found = read_nvidia()
    if not found.gpus:
        return {}
    gpu = found.gpus[0]
    return {"gpu": gpu.name, "driver": found.driver, "cuda": found.cuda, "capability": gpu.target}


def _stage(name: str) -> None:
    print(f"{STAGE}{name}", flush=True)


def _die_with(parent: int) -> None:
    """Make the system kill this process when its parent dies (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
