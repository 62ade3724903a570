"""Matrix products as modules, so that each has a name.

Calibration measures ranges, and quantization inserts Q/DQ pairs, at the input of a named module:
the input of `blocks.3.attn.qkv` is one tensor with one range, independent of the graph around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MatMul(nn.Module):
    """Linear without bias, with a constant weight (N,K): x (...,K) -> x @ weight.T (...,N)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class MatMuls(nn.Module):
    """n matrix products of the same tokens, with constant weights (N,K): (...,K) -> n x (...,N)."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.products = nn.ModuleList(MatMul(weight) for weight in weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [product(x) for product in self.products]


class GatheredMatMuls(nn.Module):
    """n matrix products of gathered tokens: tokens (B,P,C) -> n x (B,T,N).

    indices: n x (T*taps,) int64, positions among the P tokens.
    Each output token reads `taps` concatenated tokens, so each of the n weights is (N,taps*C). The
    products stay separate because INT8 kernels need constant matrices, and ONNX Runtime computes a
    batched product in float.
    """

    def __init__(self, weights: Sequence[Tensor], indices: Sequence[Tensor], taps: int) -> None:
        super().__init__()
        self.taps = taps
        self.products = nn.ModuleList(MatMul(weight) for weight in weights)
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
    """Attention scores, q @ k (+ bias), as a module whose range the FP16 plan measures.

    Scores can exceed the range of FP16. The product then stays in FP16 with a scaled q, and the
    operations after it run in FP32.
    """

    def forward(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute scores (...,L,M) from q (...,L,hd), k (...,hd,M) and bias (...,L,M)."""
        scores = q @ k
        return scores if bias is None else scores + bias


def constant(value: Tensor) -> nn.Parameter:
    """Return the tensor as a parameter without gradient."""
    return nn.Parameter(value.detach(), requires_grad=False)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear with constant weight (N,K) and bias (N,). A parameter is used as it is."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = weight if isinstance(weight, nn.Parameter) else constant(weight)
    made.bias = constant(bias)
    return made


def stacked(outputs: Sequence[Tensor]) -> Tensor:
    """Stack n x (B,T,N) to (B,n,T,N)."""
    return torch.stack(list(outputs), dim=1)
