"""ONNX Runtime and OpenVINO, imported without their telemetry. No other module imports them.

ONNX Runtime from 1.29 on writes an identifier and a database into the home and sends events to
Microsoft; OpenVINO's Python package writes an identifier into the home and asks Google Analytics,
whenever it is imported. Both do so in the process of whoever calls us, so both are off here.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENV_ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
_OPENVINO_TELEMETRY = "openvino_telemetry"
_lock = threading.Lock()


def import_onnxruntime(module: str = "onnxruntime") -> Any:
    """onnxruntime or a module of it. A value of ORT_DISABLE_TELEMETRY that is set already stays: 0
    turns its telemetry on. Where the library was imported before, only its later events are off."""
    off = os.environ.setdefault(ENV_ONNXRUNTIME, "1") != "0"  # read once, when it is loaded
    found = importlib.import_module("onnxruntime")
    if off:
        found.disable_telemetry_events()  # Windows' own events know no environment variable
    return importlib.import_module(module)


def import_openvino() -> Any:
    """openvino, with the stub it brings for environments without openvino_telemetry. It has no other
    switch that does not write a file into the home. Raises ImportError where it is missing."""
    with _missing(_OPENVINO_TELEMETRY):
        return importlib.import_module("openvino")


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """The package `name` cannot be imported within."""
    with _lock:
        known = {m: sys.modules.pop(m) for m in [*sys.modules] if m.partition(".")[0] == name}
        sys.modules[name] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            del sys.modules[name]
            sys.modules.update(known)
