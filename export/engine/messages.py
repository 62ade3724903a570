"""Errors of TensorRT's parser and builder, translated into what to change in the export."""

from __future__ import annotations

import re
from typing import Any

from save_deploy.errors import ExportError
from save_deploy.export.engine.graph import GraphFacts

# Pattern in TensorRT's text, its meaning (empty: the text is clear), what to do. One table for both,
# because the parser of one version refuses what the builder of another refuses.
_KNOWN = (
    (
        r"input has type Int32 but must have type .*Int8",
        "a bias is quantized to INT32; TensorRT dequantizes only 8-bit and smaller types",
        "leave biases in float: save-deploy's own quantization does (other tools: QuantizeBias=False)",
    ),
    (
        r"Non-zero zero point",
        "the quantization is asymmetric; TensorRT takes zero point 0 alone",
        "quantize symmetrically with int8 numbers and zero point 0",
    ),
    (
        r"first input has type UInt8",
        "an operator that TensorRT does not have for uint8 reads the picture",
        "keep the rewrite `normalise` (leave --no-merge normalise out)",
    ),
    (
        r"must have (?:the )?(?:same|identical) (?:input )?types?|must have identical types",
        "one operator reads two data types; strongly typed graphs need casts between",
        "export again: the exporter places these casts. A cast was lost if another tool wrote the file",
    ),
    (
        r"Could not infer output types for operation:[\s\d:]*deconv",
        "TensorRT has no BF16 transposed convolution",
        "export in FP16, or keep the rewrite `decoder`, which has none",
    ),
    (
        r"Key and Value must have the same shape",
        "TensorRT's attention wants values as wide as keys",
        "export with --target tensorrt",
    ),
    (
        r"Antialiasing is not supported",
        "TensorRT does not resize with antialiasing",
        "resize before the graph, or without antialiasing",
    ),
    (
        r"no optimization profile",
        "the graph has dynamic shapes",
        "export with save-export, which fixes all shapes",
    ),
    (
        r"Plugin not found|UNSUPPORTED_NODE\b|No importer registered",
        "TensorRT has no such operator",
        "export the bundle with save-export, or replace the operator",
    ),
    (
        r"Turing.*FP32 GEMM",
        "",
        "leave SM75 out: --for 8.0 8.6 ..., or export with --fp16",
    ),
    (r"HW-specific datatypes: *fp8", "", "FP8 needs SM89 or newer: --for 8.9"),
    (r"HW-specific datatypes: *b16", "", "BF16 needs SM80 or newer: leave SM75 out"),
    (
        r"is_decomposable",
        "",
        "export in FP16: TensorRT has the Attention operator in 16 bits alone",
    ),
    (r"libnvinfer_lean", "", "leave --version-compatible out"),
    (
        r"[Oo]ut of memory|bad_alloc|cudaErrorMemoryAllocation",
        "",
        "free memory, or give less workspace: --workspace MiB",
    ),
)


def parser_error(errors: list[dict[str, Any]], facts: GraphFacts, name: str) -> ExportError:
    """The first error of the parser: which node, which module, what to do."""
    first = errors[0]
    text = " ".join(line for line in first["text"].splitlines() if "catchCudaError" not in line)
    node, module = first["node"], facts.modules.get(first["node"], "")
    where = f"node {node or '(unnamed)'} [{first['operator'] or '?'}] of {module or 'the model'}"
    told = f"{first['code']} {text}"
    meaning, cure, _ = _explained((told,))
    return ExportError(
        f"TensorRT cannot read {name}{meaning}",
        got=f"{where}: {_short(text if cure else told)}",
        expected="a graph that its ONNX parser accepts",
        hint=cure or "export with --target tensorrt; --no-merge NAME leaves out a rewrite",
    )


def builder_error(errors: tuple[str, ...], name: str) -> ExportError:
    """No engine was built: the first known message of the builder, else its first, and what to do."""
    meaning, cure, text = _explained(errors)
    return ExportError(
        f"TensorRT cannot build {name}{meaning}",
        got=_short(text or next(iter(errors), "no message")),
        expected="an engine",
        hint=cure or "try one target (--for 8.6), then another precision",
    )


def _explained(errors: tuple[str, ...]) -> tuple[str, str, str]:
    """Meaning (to be appended), cure and text of the first known error; empty where none is."""
    for pattern, meaning, cure in _KNOWN:
        for error in errors:
            if re.search(pattern, error):
                return f": {meaning}" if meaning else "", cure, error
    return "", "", ""


def crash(code: int, last: list[str], name: str, stage: str) -> ExportError:
    """The building process ended without an answer. code: as subprocess gives it."""
    import signal

    ended = f"exit code {code}"
    cause = "try again with one target, and report this with the lines above"
    if code < 0:
        try:
            ended = f"signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            ended = f"signal {-code}"
        if code == -signal.SIGKILL:
            cause = "it was killed, or the system ran out of memory: free memory, build again"
    if any(re.search(r"[Oo]ut of memory|bad_alloc|MemoryError", line) for line in last):
        ended, cause = f"out of memory, {ended}", "free memory, or build on a larger machine"
    said = "".join(f"\n{_short(line)}" for line in last)
    return ExportError(
        f"the process building {name} ended while {stage}; nothing was written",
        got=f"{ended}{', last lines:' if last else ''}{said}",
        expected="an engine",
        hint=cause,
    )


def _short(text: str, limit: int = 300) -> str:
    text = re.sub(r"\s*In \w+ at /\S+\)?", "", text).strip()
    return text if len(text) <= limit else f"{text[:limit]}..."
