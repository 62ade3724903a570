"""Import of ONNX Runtime and OpenVINO without their telemetry. Other modules do not import them.

ONNX Runtime from 1.29 on writes an identifier and a database to the home folder and sends events to
Microsoft. OpenVINO's Python package writes an identifier to the home folder and contacts Google
Analytics on import. Both act in the process of our caller, so both are disabled here.
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
    """Return onnxruntime or one of its modules.

    An existing value of ORT_DISABLE_TELEMETRY is kept: 0 enables telemetry. If the library was
    imported before, only later events are disabled.
    """
    off = os.environ.setdefault(ENV_ONNXRUNTIME, "1") != "0"  # ONNX Runtime reads it when loaded
    found = importlib.import_module("onnxruntime")
    if off:
        found.disable_telemetry_events()  # Windows events ignore the environment variable
    return importlib.import_module(module)


def import_openvino() -> Any:
    """Return openvino without its telemetry package. Raises ImportError when it is missing.

    It then uses its stub for environments without openvino_telemetry. Its other switches write a
    file to the home folder.
    """
    with _missing(_OPENVINO_TELEMETRY):
        return importlib.import_module("openvino")


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """Make the package `name` impossible to import in this context."""
    with _lock:
        known = {m: sys.modules.pop(m) for m in [*sys.modules] if m.partition(".")[0] == name}
        sys.modules[name] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            del sys.modules[name]
            sys.modules.update(known)
