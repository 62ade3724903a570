"""MergeProof: what every rewrite folded, and how far it is from the eager part in float64."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
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

    @classmethod
    def of(
        cls,
        name: str,
        folded: str,
        *,
        before: Sequence[nn.Module | Tensor],
        after: Sequence[nn.Module | Tensor],
        max_rel_diff: float,
        compared: str,
    ) -> RewriteProof:
        """Count the parameters of the parts before and after."""
        return cls(name, folded, _count(before), _count(after), max_rel_diff, compared)


@dataclass(frozen=True)
class MergeProof:
    """All rewrites of one merge."""

    rewrites: tuple[RewriteProof, ...]

    @property
    def exact(self) -> bool:
        return all(r.exact for r in self.rewrites)

    def to_dict(self) -> dict[str, Any]:
        return {
            "exact": self.exact,
            "tolerance": TOLERANCE,
            "rewrites": [asdict(r) for r in self.rewrites],
        }


def relative_difference(expected: Tensor, got: Tensor) -> float:
    """max |expected - got| / max |expected|."""
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-30))


def in_double(module: ModuleT) -> ModuleT:
    """A float64 copy of a module."""
    return deepcopy(module).double()


def _count(parts: Sequence[nn.Module | Tensor]) -> int:
    """Weights in modules (parameters, and buffers, which a merge may have made of them)."""
    total = 0
    for part in parts:
        tensors = [part] if isinstance(part, Tensor) else [*part.parameters(), *part.buffers()]
        total += sum(t.numel() for t in tensors)
    return total
