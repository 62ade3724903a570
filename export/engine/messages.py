"""Translation of TensorRT's parser and builder errors into changes to make in the export."""

from __future__ import annotations

import re
from typing import Any

from save_deploy.errors import ExportError
from save_deploy.export.engine.graph import GraphFacts

# (pattern in TensorRT's text, meaning or "" when the text is clear, what to do). One table for
# parser and builder, because versions differ in which of the two rejects a graph.
_KNOWN = (
    (
        r"input has type Int32 but must have type .*Int8",
        "a bias is quantized to INT32; TensorRT dequantizes only 8-bit and smaller types",
        "leave biases in float: save-deploy's own quantization does (other tools: QuantizeBias=False)",
    ),
    (
        r"Non-zero zero point",
        "the quantization is asymmetric; TensorRT supports only zero point 0",
        "quantize symmetrically to int8 with zero point 0",
    ),
    (
        r"first input has type UInt8",
        "TensorRT does not support this operator on the uint8 image",
        "keep the rewrite `normalise` (omit --no-merge normalise)",
    ),
    (
        r"must have (?:the )?(?:same|identical) (?:input )?types?|must have identical types",
        "one operator has inputs of two data types; strongly typed graphs need casts",
        "export again: the exporter inserts these casts; another tool may have removed one",
    ),
    (
        r"Could not infer output types for operation:[\s\d:]*deconv",
        "TensorRT has no BF16 transposed convolution",
        "export in FP16, or keep the rewrite `decoder`, which removes it",
    ),
    (
        r"Key and Value must have the same shape",
        "TensorRT's attention needs values and keys of the same head size",
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
        "omit SM75: --for 8.0 8.6 ..., or export with --fp16",
    ),
    (r"HW-specific datatypes: *fp8", "", "FP8 needs SM89 or newer: --for 8.9"),
    (r"HW-specific datatypes: *b16", "", "BF16 needs SM80 or newer: omit SM75"),
    (
        r"is_decomposable",
        "",
        "export in FP16: TensorRT supports the Attention operator only in 16 bits",
    ),
    (r"libnvinfer_lean", "", "omit --version-compatible"),
    (
        r"[Oo]ut of memory|bad_alloc|cudaErrorMemoryAllocation",
        "",
        "free memory, or reduce the workspace: --workspace MiB",
    ),
)


def parser_error(errors: list[dict[str, Any]], facts: GraphFacts, name: str) -> ExportError:
    """Return the error for the parser's first error, with node, module and remedy."""
    first = errors[0]
    text = " ".join(line for line in first["text"].splitlines() if "catchCudaError" not in line)
    node, module = first["node"], facts.modules.get(first["node"], "")
    where = f"node {node or '(unnamed)'} [{first['operator'] or '?'}] of {module or 'the model'}"
    message = f"{first['code']} {text}"
    meaning, cure, _ = _explained((message,))
    return ExportError(
        f"TensorRT cannot read {name}{meaning}",
        got=f"{where}: {_short(text if cure else message)}",
        expected="a graph that its ONNX parser accepts",
        hint=cure or "export with --target tensorrt; --no-merge NAME leaves out a rewrite",
    )


def builder_error(errors: tuple[str, ...], name: str) -> ExportError:
    """Return the error of a failed build: the first known message, else the first, and a remedy."""
    meaning, cure, text = _explained(errors)
    return ExportError(
        f"TensorRT cannot build {name}{meaning}",
        got=_short(text or next(iter(errors), "no message")),
        expected="an engine",
        hint=cure or "try one target (--for 8.6), then another precision",
    )


def _explained(errors: tuple[str, ...]) -> tuple[str, str, str]:
    """Return meaning (as a suffix), remedy and text of the first known error, or three ""."""
    for pattern, meaning, cure in _KNOWN:
        for error in errors:
            if re.search(pattern, error):
                return f": {meaning}" if meaning else "", cure, error
    return "", "", ""


def crash(code: int, last: list[str], name: str, stage: str) -> ExportError:
    """Return the error for a build process that ended without an answer.

    code: exit code as subprocess gives it, -N for signal N.
    last: last lines of its output.
    """
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
