"""Which graphs of an export are run for its table, and on which backends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from save_deploy.export.options import ExportOptions
from save_deploy.export.prove import Entry
from save_deploy.export.quantize.explain import FLOATS, require_fp8_backend
from save_deploy.runtime.session import available_backends
from save_deploy.runtime.session.open import fits


def choose_entries(
    options: ExportOptions, compared: Sequence[tuple[str, Path]], folder: Path, *, large: bool
) -> list[Entry]:
    """compared: precision and file of graphs that only the table needs; folder: where the bundle's own
    graph is, which comes last.

    large: one session at a time; a backend that needs more memory than is free is left out of the
    table, but for ONNX Runtime, whose weights may stay mapped.
    """
    backends = sorted(available_backends(), reverse=True)
    if options.precision.quantized == "fp8":
        backends = require_fp8_backend()
    elif large and not options.precision.quantized:
        backends = ["onnxruntime"]
    own, quantized = str(options.precision), options.precision.quantized
    entries = []
    for precision, path in (*compared, (own, folder / "model.onnx")):
        asked, low_memory = backends, False
        if precision != own and not quantized:
            asked = ["onnxruntime"]
        if large:
            fitting = not quantized or fits(path)
            asked = [b for b in asked if fitting or b == "onnxruntime"] or asked
            # mapped weights keep products in 8 bits from their kernels
            low_memory = precision in FLOATS and not (quantized and fitting)
        entries += [Entry(backend, precision, path, low_memory) for backend in asked]
    return entries
