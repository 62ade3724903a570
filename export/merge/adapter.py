"""Rewrite of the image adapter: its convolution pair as matrix products of gathered tokens.

Constant weights in a plain matrix product are what INT8 kernels want on every runtime; a quantized
transposed convolution runs in float on TensorRT. Stays channels-last throughout.
"""

from __future__ import annotations

from copy import copy, deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.export.merge.product import GatheredProducts, stacked
from save_deploy.model.adapters import ImageAdapter


def can_be_products(adapter: ImageAdapter) -> bool:
    """Only the full (not depthwise) 3x3 stride 2 and 4x4 stride 2 pair is rewritten."""
    down, up = adapter.spatial[0], adapter.spatial[2]
    assert isinstance(down, nn.Conv2d) and isinstance(up, nn.ConvTranspose2d)
    return down.groups == 1 and down.kernel_size == (3, 3) and up.kernel_size == (4, 4)


class DeployAdapter(nn.Module):
    """(B,s,s,C) -> (B,s,s,C); gate, skip and norm are the eager ones.

    Down: nine neighbours of every second token, one product (T/4,9C) x (9C,C). Up: an output token
    of row and column parity (p,q) reads 2x2 of the small grid, so four products (T/4,4C) x (4C,C): as
    many multiplications as the transposed convolution.
    """

    def __init__(self, adapter: ImageAdapter, grid: int) -> None:
        super().__init__()
        self.channel, self.norm, self.skip = adapter.channel, adapter.norm, adapter.skip
        self.small = grid // 2
        self.register_parameter("input_scale", None)  # see with_scaled_input
        down, up = adapter.spatial[0], adapter.spatial[2]
        assert isinstance(down, nn.Conv2d) and isinstance(up, nn.ConvTranspose2d)
        dim = down.in_channels
        # (out,in,3,3) -> (out,3*3*in)
        weight = down.weight.permute(0, 2, 3, 1).reshape(dim, 9 * dim).contiguous()
        self.down = GatheredProducts([weight], [_down_index(grid)], taps=9)
        # transposed kernel rows that reach parity p: p=0 reads offsets (-1,0) by rows (3,1),
        # p=1 reads (0,1) by rows (2,0)
        taps = torch.tensor([[3, 1], [2, 0]])
        kernel = up.weight[:, :, taps][..., taps]  # (in,out,p,i,q,j)
        kernel = kernel.permute(2, 4, 1, 3, 5, 0).reshape(4, dim, 4 * dim)  # (p*q,out,i*j*in)
        self.up = GatheredProducts(
            [weight.clone() for weight in kernel], list(_up_index(grid // 2)), taps=4
        )

    def forward(self, tokens: Tensor) -> Tensor:
        batch, grid, _, dim = tokens.shape
        gate = self.channel(tokens.mean(dim=(1, 2)))  # (B,C)
        if self.input_scale is not None:
            gate = gate * self.input_scale
        gated = tokens * gate[:, None, None, :]
        around = F.pad(gated, (0, 0, 1, 1, 1, 1)).flatten(1, 2)  # (B,(s+2)^2,C)
        # ReLU after the reshape: right behind a product it would stop ONNX Runtime's int8 fusion
        small = torch.relu(self.down(around)[0].reshape(batch, self.small, self.small, dim))
        around = F.pad(small, (0, 0, 1, 1, 1, 1)).flatten(1, 2)  # (B,(s/2+2)^2,C)
        y = torch.relu(stacked(self.up(around)))  # (B,4,T/4,C)
        # (B,p,q,s/2,s/2,C) -> rows and columns interleaved by parity
        y = y.reshape(batch, 2, 2, self.small, self.small, dim).permute(0, 3, 1, 4, 2, 5)
        y = y.reshape(batch, grid, grid, dim)
        return self.norm(gated + y if self.skip else y)

    def with_scaled_input(self, scale: Tensor) -> DeployAdapter:
        """The same function of tokens that were divided by scale (C,); shares the large weights."""
        made = copy(self)
        made._modules, made._parameters = dict(self._modules), dict(self._parameters)
        made.channel = deepcopy(self.channel)
        first = next(m for m in made.channel.modules() if isinstance(m, nn.Linear))
        first.weight = nn.Parameter(first.weight * scale, requires_grad=False)
        made.input_scale = nn.Parameter(scale.clone(), requires_grad=False)
        return made


def _down_index(grid: int) -> Tensor:
    """Padded tokens under a 3x3 kernel of stride 2: (T/4*9,) in a (s+2)x(s+2) grid."""
    start, tap = torch.arange(0, grid, 2), torch.arange(3)
    rows = (start[:, None] + tap)[:, None, :, None]  # (h,1,3,1)
    cols = (start[:, None] + tap)[None, :, None, :]  # (1,w,1,3)
    return (rows * (grid + 2) + cols).flatten()


def _up_index(half: int) -> Tensor:
    """Padded small tokens that parity (p,q) reads: (4,T/4*4) in a (s/2+2)x(s/2+2) grid."""
    near = torch.arange(half)[None, :, None] + torch.tensor([[0, 1], [1, 2]])[:, None]  # (p,h,i)
    rows = near[:, None, :, None, :, None]  # (p,1,h,1,i,1)
    cols = near[None, :, None, :, None, :]  # (1,q,1,w,1,j)
    return (rows * (half + 2) + cols).reshape(4, -1)  # (p,q,h,w,i,j) -> (p*q,h*w*i*j)
