"""Receipt of an engine build: what the graph requests compared with what the builder reports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from save_deploy.export.engine.layers import BuildLog, Kernel, operands
from save_deploy.options import option

if TYPE_CHECKING:
    from save_deploy.export.engine.graph import GraphFacts, MatMul

ALLOW = "What the receipt may show"

_MULTIPLYING = re.compile(r"gemm|gemv|conv|correlation|fusion|matrix|matmul", re.IGNORECASE)
_EIGHT_BIT = ("int8", "fp8", "int4", "fp4")
_HALF = ("fp16", "bf16")
# Steps of generated kernels that only move data
_MOVES = frozenset(("Resh", "Tran", "Move", "Slic", "Conc", "Repl", "Copy", "Pad"))
_CASTS = frozenset(("Cast",))
_UNKNOWN_RTX = (
    "tactics of MatMuls (chosen and compiled on the target GPU)",
    "speed",
    "numerics on a GPU",
)
_UNKNOWN_FULL = ("speed", "numerics on a GPU (compare with the golden samples)")
_NAMED = 3  # maximum of names listed in a message


@dataclass(frozen=True)
class KernelRow:
    """One kernel.

    dtypes: `int8 x int8 -> fp16`.
    modules: modules of the model that it computes.
    """

    name: str
    type: str
    dtypes: str
    modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Counts over one engine. Names are ONNX nodes, which start with the module.

    kernels_by_type: kernel type -> count, without synchronisations (signals and waits between
        streams).
    products: how the MatMuls of the graph were built -> count.
    attentions: number of attentions; fused: those computed by one kernel; unfused: FP16 and BF16
        ones that are not; fp32_attentions: number in FP32, which TensorRT does not fuse.
    unfused_softmax: softmax nodes outside of attentions.
    fp32_built: MatMuls of 8 or 16 bits that were built in FP32.
    quantised_asked: number of quantized MatMuls of the graph; quantised: those that multiply 8-bit
        values; dequantised: those computed in float.
    unproven: quantized MatMuls, and FP16 and BF16 attentions, that no kernel names.
    *_bytes: None when the builder does not report them.
    unknown: properties that the log does not prove.
    """

    kernels_by_type: dict[str, int]
    synchronisations: int
    products: dict[str, int]
    attentions: int
    fused: int
    fp32_attentions: int
    unfused: tuple[str, ...]
    unfused_softmax: tuple[str, ...]
    fp32_built: tuple[str, ...]
    quantised_asked: int
    quantised: int
    dequantised: tuple[str, ...]
    unproven: tuple[str, ...]
    casts: int
    layout_copies: int
    activation_bytes: int | None
    weights_bytes: int | None
    engine_bytes: int
    build_s: float
    peak_bytes: int
    warnings: tuple[str, ...]
    kernels: tuple[KernelRow, ...]
    unknown: tuple[str, ...]

    @property
    def n_kernels(self) -> int:
        return len(self.kernels)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Receipt:
        """Inverse of to_dict, also after JSON. Raises KeyError or TypeError for another layout."""
        tuples = {f.name for f in fields(cls) if str(f.type).startswith("tuple")}
        rows = [KernelRow(**{**r, "modules": tuple(r["modules"])}) for r in values["kernels"]]
        plain: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in values.items()}
        return cls(**{**plain, "kernels": tuple(rows)})

    def by_module(self, depth: int = 2) -> dict[str, int]:
        """Return the number of kernels per module, cut to `depth` names (blocks.3).

        A kernel that computes several modules counts for each.
        """
        found: Counter[str] = Counter()
        for kernel in self.kernels:
            names = {".".join(m.split(".")[:depth]) or "model" for m in kernel.modules}
            found.update(names or {"(not named)"})
        return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


@dataclass(frozen=True, kw_only=True)
class Allow:
    """Receipt failures that the user accepts."""

    unfused: bool = option(
        "--allow-unfused", panel=ALLOW, default=False,
        help="Accept attentions that are not fused into one kernel.",
    )  # fmt: skip
    fp32: bool = option(
        "--allow-fp32", panel=ALLOW, default=False, help="Accept MatMuls built in FP32."
    )
    dequantised: bool = option(
        "--allow-dequantised", panel=ALLOW, default=False,
        help="Accept quantized MatMuls that are computed in float.",
    )  # fmt: skip
    unproven: bool = option(
        "--allow-unproven", panel=ALLOW, default=False,
        help="Accept MatMuls whose precision the builder does not report.",
    )  # fmt: skip


def make_receipt(
    facts: GraphFacts,
    log: BuildLog,
    *,
    engine_bytes: int,
    build_s: float,
    peak_bytes: int,
    rtx: bool,
) -> Receipt:
    """Compare a graph with the log of its build."""
    built = _Built(log.kernels)
    fp32_attentions = [a for a in facts.attentions if a.dtype == "fp32"]
    halves = [a for a in facts.attentions if a.dtype != "fp32"]
    named = [a for a in halves if built.names_any(a.scores, a.softmax, a.values)]
    unfused = [a for a in named if not built.together(a.scores, a.softmax, a.values)]
    made = {m.node: built.kernel_of(m) for m in facts.matmuls}
    asked = [m for m in facts.matmuls if m.quantized]
    silent = tuple(m.node for m in asked if made[m.node] is None)
    dequantised = tuple(
        m.node for m in asked if m.node not in silent and not _is_quantized(made[m.node])
    )
    unknown = list(_UNKNOWN_RTX if rtx else _UNKNOWN_FULL)
    missing = [name for name, kernel in made.items() if kernel is None]
    if missing:
        unknown.append(f"kernels of {len(missing)} MatMuls, which the log does not name")
    return Receipt(
        kernels_by_type=dict(Counter(k.type for k in log.kernels).most_common()),
        synchronisations=log.synchronisations,
        products=dict(Counter(_label(made[m.node]) for m in facts.matmuls).most_common()),
        attentions=len(facts.attentions),
        fused=sum(built.together(a.scores, a.softmax, a.values) for a in facts.attentions),
        fp32_attentions=len(fp32_attentions),
        unfused=tuple(a.softmax for a in unfused),
        unfused_softmax=facts.plain_softmax,
        fp32_built=tuple(
            m.node
            for m in facts.matmuls
            if (m.quantized or m.dtype in _HALF) and _is_fp32(made[m.node])
        ),
        quantised_asked=len(asked),
        quantised=len(asked) - len(dequantised) - len(silent),
        dequantised=dequantised,
        unproven=silent + tuple(a.softmax for a in halves if a not in named),
        casts=sum(_only(k, _MOVES | _CASTS) and bool(_CASTS & set(k.steps)) for k in log.kernels),
        layout_copies=sum(_only(k, _MOVES) or "reformat" in k.type.lower() for k in log.kernels),
        activation_bytes=log.activation_bytes,
        weights_bytes=log.weights_bytes,
        engine_bytes=engine_bytes,
        build_s=round(build_s, 2),
        peak_bytes=peak_bytes,
        warnings=log.warnings,
        kernels=tuple(_row(k, facts.modules) for k in log.kernels),
        unknown=tuple(unknown),
    )


def failures(receipt: Receipt, allow: Allow) -> list[str]:
    """Return the failures of a receipt, each with the option that accepts it."""
    found = []
    if not receipt.kernels and not allow.unproven:
        found.append("the builder listed no kernels, so the engine cannot be checked "
                     "(--allow-unproven)")  # fmt: skip
    elif receipt.unproven and not allow.unproven:
        found.append(
            f"quantized MatMuls and attentions that no kernel names: {len(receipt.unproven)}: "
            f"{_few(receipt.unproven)} (--allow-unproven)"
        )
    if receipt.fp32_built and not allow.fp32:
        found.append("FP16, INT8 or FP8 MatMuls built in FP32: "
                     f"{_few(receipt.fp32_built)} (--allow-fp32)")  # fmt: skip
    if receipt.dequantised and not allow.dequantised:
        found.append(
            f"quantized MatMuls computed in float: {len(receipt.dequantised)} of "
            f"{receipt.quantised_asked}: {_few(receipt.dequantised)} (--allow-dequantised)"
        )
    if receipt.unfused and not allow.unfused:
        found.append(
            f"attentions that are not one kernel: {len(receipt.unfused)} of {receipt.attentions}: "
            f"{_few(receipt.unfused)} (--allow-unfused)"
        )
    if receipt.unfused_softmax and not allow.unfused:
        found.append(f"softmax outside of any attention: {_few(receipt.unfused_softmax)} "
                     "(--allow-unfused)")  # fmt: skip
    return found


class _Built:
    """Kernels by the ONNX nodes they name."""

    def __init__(self, kernels: Iterable[Kernel]) -> None:
        self.of: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            for node in kernel.nodes:
                self.of.setdefault(node, []).append(kernel)

    def together(self, *nodes: str) -> bool:
        """Return True when one kernel computes all of these nodes, as for a fused attention."""
        return any(set(nodes) <= set(kernel.nodes) for kernel in self.of.get(nodes[0], ()))

    def names_any(self, *nodes: str) -> bool:
        return any(node in self.of for node in nodes)

    def kernel_of(self, matmul: MatMul) -> Kernel | None:
        """Return the kernel that multiplies, not one that only prepares an input of the node."""
        named = self.of.get(matmul.node, [])
        multiplying = [k for k in named if _MULTIPLYING.search(k.type)]
        generated = [k for k in named if not set(k.steps) <= _MOVES | _CASTS]
        return next(iter([*multiplying, *generated, *named]), None)


def _is_quantized(kernel: Kernel | None) -> bool:
    """Return True when both operands have at most 8 bits and no conversion precedes the product."""
    if kernel is None or not all(dtype in _EIGHT_BIT for dtype in operands(kernel)):
        return False
    before = kernel.steps[: kernel.steps.index("Fc")] if "Fc" in kernel.steps else ()
    return not before


def _is_fp32(kernel: Kernel | None) -> bool:
    return kernel is not None and set(_factors(kernel)) == {"fp32"}


def _factors(kernel: Kernel) -> tuple[str, ...]:
    """Return the data types of the operands.

    For a generated kernel, which does not name its operands: the types of all inputs.
    """
    if _MULTIPLYING.search(kernel.type):
        return tuple(dtype for dtype in operands(kernel) if dtype != "?")
    read = [t for t in (*kernel.inputs, *kernel.constants) if max(t.shape, default=1) > 1]
    return tuple(dict.fromkeys(t.dtype for t in read))


def _label(kernel: Kernel | None) -> str:
    if kernel is None:
        return "not named in the log"
    if "mha" in kernel.name:
        return f"fused {' x '.join(_factors(kernel))}"
    kind = kernel.type if _MULTIPLYING.search(kernel.type) else "generated"
    return f"{kind} {' x '.join(_factors(kernel))}"


def _only(kernel: Kernel, steps: frozenset[str]) -> bool:
    return bool(kernel.steps) and set(kernel.steps) <= steps


def _row(kernel: Kernel, modules: dict[str, str]) -> KernelRow:
    made = " ".join(dict.fromkeys(t.dtype for t in kernel.outputs))
    owners = dict.fromkeys(modules.get(node, "") for node in kernel.nodes)
    named = tuple(m for m in owners if m) or (("model",) if owners else ())
    return KernelRow(kernel.name, kernel.type, f"{' x '.join(_factors(kernel))} -> {made}", named)


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key with numbers in order: blocks.10 after blocks.9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]
