"""Limit of the attention scores of the mask decoder, so that they fit into float16.

SAM divides q k^T by the root of the channels after the product, so the product itself must stay
below 65,504. Without a limit training drives it above one million.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

from save_deploy.errors import SaveDeployError


class ScoreLimit:
    """Scales the projections of q and k after steps whose largest score exceeds the limit.

    Both projections of an attention are multiplied by sqrt(limit / score), which multiplies its
    scores by limit / score (QK-Clip of Kimi K2, arXiv 2507.20534). The graph of the model does not
    change.
    """

    def __init__(self, decoder: nn.Module, limit: float) -> None:
        """limit: largest |q k^T| before SAM's division. Frozen attentions stay as they are.

        Raises SaveDeployError when all are frozen.
        """
        self.limit = limit
        self._attentions = [
            m
            for m in decoder.modules()
            if isinstance(m, Attention) and m.q_proj.weight.requires_grad
        ]
        if not self._attentions:
            raise SaveDeployError(
                "no attention of the decoder is trained",
                got=f"a limit of its scores ({limit:g})",
                expected="--score-limit 0 for this system",
            )
        self._projected: list[dict[str, Tensor]] = [{} for _ in self._attentions]
        for attention, kept in zip(self._attentions, self._projected, strict=True):
            for name in ("q_proj", "k_proj"):
                getattr(attention, name).register_forward_hook(_keep(kept, name))

    def scores(self) -> list[float]:
        """Return the largest |q k^T| of every attention in the last forward pass."""
        return [
            _largest_score(kept["q_proj"], kept["k_proj"], attention.num_heads)
            for attention, kept in zip(self._attentions, self._projected, strict=True)
        ]

    @torch.no_grad()
    def apply(self, scores: list[float]) -> None:
        """Scale the projections of the attentions whose score exceeds the limit, in place."""
        for parameters, score in zip(self._parameters(), scores, strict=True):
            if score > self.limit:
                for parameter in parameters:
                    parameter.mul_(math.sqrt(self.limit / score))

    def _parameters(self) -> Iterator[list[nn.Parameter]]:
        for attention in self._attentions:
            yield [*attention.q_proj.parameters(), *attention.k_proj.parameters()]


def _keep(
    kept: dict[str, Tensor], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept[name] = output.detach()

    return hook


def _largest_score(q: Tensor, k: Tensor, n_heads: int) -> float:
    """Return the largest |q k^T| over heads for q (B,N,C) and k (B,M,C)."""
    q, k = (x.float().unflatten(2, (n_heads, -1)).transpose(1, 2) for x in (q, k))  # (B,H,N,C/H)
    return float((q @ k.transpose(2, 3)).abs().max())
