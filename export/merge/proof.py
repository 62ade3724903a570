"""MergeProof: what every rewrite folded, and how far it is from the eager part in float64."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

ModuleT = TypeVar("ModuleT", bound=nn.Module)
TOLERANCE = 1e-9  # max abs diff in float64, relative to the largest output


@dataclass(frozen=True)
class RewriteProof:
    """One rewrite: what was folded and what was not and why; parameters and multiplications per frame
    before and after; worst relative difference in float64, and on which parts it was taken."""

    name: str
    folded: str
    kept: str
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    max_rel_diff: float
    compared: str

    @property
    def exact(self) -> bool:
        return self.max_rel_diff <= TOLERANCE


@dataclass(frozen=True)
class MergeProof:
    """All rewrites of one merge; `blocks` is the worst relative difference of each encoder block;
    macs are those of a whole frame (audio side excluded, it runs once per second)."""

    rewrites: tuple[RewriteProof, ...]
    switched_off: tuple[str, ...]
    forms: dict[str, object]
    blocks: tuple[float, ...]
    macs_before: int
    macs_after: int

    @property
    def exact(self) -> bool:
        return all(r.exact for r in self.rewrites) and max(self.blocks, default=0.0) <= TOLERANCE

    @property
    def max_rel_diff(self) -> float:
        return max([*(r.max_rel_diff for r in self.rewrites), *self.blocks])

    def to_dict(self) -> dict[str, Any]:
        return {"exact": self.exact, "tolerance": TOLERANCE, **asdict(self)}


def relative_difference(expected: Tensor, got: Tensor) -> float:
    """max |expected - got| / max |expected|."""
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-30))


def in_double(module: ModuleT) -> ModuleT:
    """A float64 copy of a module."""
    return deepcopy(module).double()


def count_parameters(parts: Sequence[nn.Module | Tensor]) -> int:
    """Weights in modules (parameters, and float buffers, which a merge may have made of them)."""
    total = 0
    for part in parts:
        tensors = [part] if isinstance(part, Tensor) else [*part.parameters(), *part.buffers()]
        total += sum(t.numel() for t in tensors if t.is_floating_point())
    return total


def count_macs(module: nn.Module, *args: Tensor) -> int:
    """Multiply-accumulates of one call, counted on meta tensors: nothing is computed or copied."""
    weights = {n: p.to("meta") for n, p in [*module.named_parameters(), *module.named_buffers()]}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(module, weights, tuple(a.to("meta") for a in args))
    return counter.get_total_flops() // 2
