"""Matrix products with constant weights, each a module of its own.

A module has a name, and the name is where ranges are measured and where Q/DQ is placed: the input of
`blocks.3.attn.qkv` is one tensor with one range, whatever the graph around it looks like.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Product(nn.Module):
    """(...,K) -> (...,N): a linear without bias, weight (N,K)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class GatheredProducts(nn.Module):
    """One product per index over the same tokens: (B,P,C) -> n x (B,T,N).

    index: n x (T*taps,) positions among P; each output token reads `taps` tokens, side by side, so a
    weight is (N,taps*C). One plain product each: int8 kernels want constant matrices, and a batched
    one runs in float on ONNX Runtime.
    """

    def __init__(self, weights: Sequence[Tensor], indices: Sequence[Tensor], taps: int) -> None:
        super().__init__()
        self.taps = taps
        self.products = nn.ModuleList(Product(weight) for weight in weights)
        for i, index in enumerate(indices):
            self.register_buffer(f"index_{i}", index, persistent=False)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        batch, _, dim = tokens.shape
        outputs = []
        for i, product in enumerate(self.products):
            near = tokens.index_select(1, getattr(self, f"index_{i}"))
            rows = near.reshape(batch, -1, self.taps * dim)  # (B,T*taps,C) -> (B,T,taps*C)
            outputs.append(product(rows))
        return outputs


class Scores(nn.Module):
    """Attention's scores, q @ k (+ bias): a module, because their range is looked at by itself.

    They may be far above every other value of a model. precision.py then keeps the product in FP16
    with a smaller q, and what follows in FP32.
    """

    def forward(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """q (...,L,hd), k (...,hd,M), bias (...,L,M) -> (...,L,M)."""
        scores = q @ k
        return scores if bias is None else scores + bias


def constant(value: Tensor) -> nn.Parameter:
    """A tensor as a weight that is not trained."""
    return nn.Parameter(value.detach(), requires_grad=False)


def stacked(outputs: Sequence[Tensor]) -> Tensor:
    """n x (B,T,N) -> (B,n,T,N)."""
    return torch.stack(list(outputs), dim=1)
