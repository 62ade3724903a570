"""MergeProof: what every rewrite folded, and how far it is from the eager part in float64."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-9  # max abs diff in float64, relative to the largest output


@dataclass(frozen=True)
class RewriteProof:
    """One rewrite: name, what was folded, parameters before and after, worst relative difference in
    float64, and on which parts it was compared (a part that was not says why)."""

    name: str
    folded: str
    params_before: int
    params_after: int
    max_rel_diff: float
    compared: str

    @property
    def exact(self) -> bool:
        return self.max_rel_diff <= TOLERANCE


@dataclass(frozen=True)
class MergeProof:
    """All rewrites of one merge."""

    rewrites: tuple[RewriteProof, ...]

    @property
    def exact(self) -> bool:
        return all(r.exact for r in self.rewrites)

    @property
    def params_before(self) -> int:
        return sum(r.params_before for r in self.rewrites)

    @property
    def params_after(self) -> int:
        return sum(r.params_after for r in self.rewrites)

    def to_dict(self) -> dict[str, Any]:
        return {
            "exact": self.exact,
            "tolerance": TOLERANCE,
            "rewrites": [asdict(r) for r in self.rewrites],
        }


def relative_difference(
    before: Callable[..., Tensor], after: Callable[..., Tensor], *inputs: Tensor
) -> float:
    """max |before - after| / max |before| in float64. The callables are copied in double, so models
    of any size can be compared part by part."""
    with torch.inference_mode():
        expected = in_double(before)(*inputs)
        got = in_double(after)(*inputs)
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-30))


def in_double(part: Any) -> Any:
    """A float64 copy of a module."""
    if isinstance(part, nn.Module):
        return deepcopy(part).double()
    return part


def count_parameters(*modules: nn.Module | None) -> int:
    """Weights held by the modules: parameters, and buffers that a merge made of parameters."""
    total = 0
    for module in modules:
        if module is not None:
            total += sum(p.numel() for p in module.parameters())
            total += sum(b.numel() for b in module.buffers() if b.is_floating_point())
    return total
