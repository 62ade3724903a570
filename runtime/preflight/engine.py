"""The whole preflight of one engine of a bundle, and the library's own check of a header."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from save_deploy.bundle import FileRecord
from save_deploy.runtime.preflight.files import check_file
from save_deploy.runtime.preflight.machine import Machine
from save_deploy.runtime.preflight.rules import Entry, Refusal, check, malformed

GRAPH = "model.onnx"


def engine_refusals(
    entry: Entry,
    folder: Path,
    files: Mapping[str, FileRecord],
    machine: Machine,
    *,
    hashed: bool = False,
) -> list[Refusal]:
    """Every reason why this engine of a bundle may not run here; nothing of it is deserialised.

    files: of the manifest. hashed: its sha256 was compared already.
    """
    try:
        path, library, onnx = folder / entry["file"], entry["library"], entry["onnx_sha256"]
        data = entry["onnx_data_sha256"]
    except (KeyError, TypeError) as error:
        raise malformed(entry, repr(error)) from error
    found = check(entry, machine)
    if [r.rule for r in found] == ["version"]:  # only the library can say more than its number
        found = check(entry, machine, validity=engine_validity(library, path)[0])
    weights = files.get(f"{GRAPH}.data")
    graph = (files[GRAPH].sha256, weights.sha256 if weights else None)
    if graph != (onnx, data):
        found.append(
            Refusal(
                "onnx",
                f"engine of another {GRAPH}",
                f"built from {_short(onnx, data)}",
                _short(*graph),
                "build the engine again",
            )
        )
    return found + check_file(entry, path, files.get(entry["file"]), hashed=hashed)


def _short(graph: str, weights: str | None) -> str:
    return f"{graph[:12]}..." + (f" with weights {weights[:12]}..." if weights else "")


def engine_validity(library: str, path: Path) -> tuple[str | None, tuple[str, ...]]:
    """(VALID | SUBOPTIMAL | INVALID, diagnostics) by the library's look at the header alone.

    (None, ()) where the library has no such check (full TensorRT) or the file is missing. Not run on
    a GPU yet; without one the answer is INVALID with no diagnostics.
    """
    trt = importlib.import_module(library)
    if not hasattr(trt.Runtime, "get_engine_validity") or not path.is_file():
        return None, ()
    runtime = trt.Runtime(last_error_logger(library))
    with path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    validity, diagnostics = runtime.get_engine_validity(header)
    flags = trt.EngineInvalidityDiagnostics.__members__.items()
    found = tuple(name for name, flag in flags if int(diagnostics) & int(flag))
    return validity.name, found


@functools.cache
def last_error_logger(library: str) -> Any:
    """The one logger of a process (TensorRT refuses a second): silent, keeps the `last` error line."""
    trt = importlib.import_module(library)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            # every error without a driver is followed by a line of TensorRT's own error handling
            if int(severity) <= int(trt.ILogger.Severity.ERROR) and "catchCudaError" not in message:
                self.last = message.splitlines()[0] if message else self.last

    return Logger()
