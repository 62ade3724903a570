"""Proof of a merge: what each rewrite changed, and its float64 difference from the eager part."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from save_deploy.export.repeat import run_on_meta, structure

ModuleT = TypeVar("ModuleT", bound=nn.Module)
TOLERANCE = 1e-9  # max |difference| / max |output|, in float64


@dataclass(frozen=True)
class RewriteProof:
    """One rewrite and its difference from the eager part.

    folded: what was rewritten.
    kept: what was not rewritten, and why.
    params, macs: number of weights, and of multiply-accumulates per frame.
    max_rel_diff: see relative_difference, in float64.
    compared: the parts and inputs of the comparison.
    """

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
    """All rewrites of one merge.

    switched_off: names of the rewrites that were not applied.
    blocks: largest relative difference of each encoder block.
    macs: multiply-accumulates of the whole model per frame, without the audio encoder.
    """

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
    """Return max |expected - got| / max |expected|, 0 for equal tensors, infinity for NaN."""
    found = float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-30))
    return math.inf if math.isnan(found) else found  # max(0.0, nan) is 0.0


def in_double(module: ModuleT) -> ModuleT:
    """Return a float64 copy of a module."""
    return deepcopy(module).double()


def count_parameters(parts: Sequence[nn.Module | Tensor]) -> int:
    """Return the number of float parameters and buffers.

    Buffers count because a rewrite may turn parameters into buffers.
    """
    total = 0
    for part in parts:
        tensors = [part] if isinstance(part, Tensor) else [*part.parameters(), *part.buffers()]
        total += sum(t.numel() for t in tensors if t.is_floating_point())
    return total


def count_macs(module: nn.Module, *args: Tensor) -> int:
    """Return the multiply-accumulates of module(*args), counted on meta tensors."""
    with FlopCounterMode(display=False) as counter:
        run_on_meta(module, *args)
    return counter.get_total_flops() // 2


class MacCounter:
    """Counts multiply-accumulates of modules on the same arguments; those alike only once."""

    def __init__(self, *args: Tensor) -> None:
        self._args = args
        # the module is kept, because a structure can hold ids of objects
        self._known: dict[Hashable, tuple[nn.Module, int]] = {}

    def __call__(self, module: nn.Module) -> int:
        kind = structure(module)
        if kind not in self._known:
            self._known[kind] = module, count_macs(module, *self._args)
        return self._known[kind][1]
