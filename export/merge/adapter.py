"""Rewrites of the image adapter: around its convolutions, or with these as products of tokens.

Constant weights in a plain matrix product are what INT8 kernels want on every runtime; a quantized
transposed convolution runs in float on TensorRT, while in 16 bits convolutions need fewer kernels.
Channels are last but for the convolutions.
"""

from __future__ import annotations

from copy import copy, deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.export.merge.forms import Forms
from save_deploy.export.merge.product import GatheredProducts, constant, stacked
from save_deploy.model.adapters import ImageAdapter


def deploy_adapter(adapter: ImageAdapter, grid: int, forms: Forms) -> nn.Module:
    """The form of this adapter: itself where there is none."""
    if forms.adapter == "matmul" and can_be_products(adapter):
        return DeployAdapter(adapter, grid, joined=forms.joined)
    return TokenAdapter(adapter) if forms.adapter == "tokens" else adapter


def can_be_products(adapter: ImageAdapter) -> bool:
    """Only the full (not depthwise) 3x3 stride 2 and 4x4 stride 2 pair is rewritten."""
    down, up = adapter.spatial[0], adapter.spatial[2]
    assert isinstance(down, nn.Conv2d) and isinstance(up, nn.ConvTranspose2d)
    return down.groups == 1 and down.kernel_size == (3, 3) and up.kernel_size == (4, 4)


class TokenAdapter(nn.Module):
    """(B,s,s,C) -> (B,s,s,C): gate, skip and norm on tokens, only the convolutions channels-first.

    TensorRT then computes the gate's mean where the norm before it is, and copies tokens once less.
    """

    def __init__(self, adapter: ImageAdapter) -> None:
        super().__init__()
        self.channel, self.spatial = adapter.channel, adapter.spatial
        self.norm, self.skip = adapter.norm, adapter.skip

    def forward(self, tokens: Tensor) -> Tensor:
        gated = tokens * self.channel(tokens.mean(dim=(1, 2)))[:, None, None, :]
        y = self.spatial(gated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(gated + y if self.skip else y)


class DeployAdapter(nn.Module):
    """(B,s,s,C) -> (B,s,s,C); gate, skip and norm are the eager ones.

    Down: nine neighbours of every second token, one product (T/4,9C) x (9C,C). Up: an output token
    of row and column parity (p,q) reads 2x2 of the small grid, so four products (T/4,4C) x (4C,C): as
    many multiplications as the transposed convolution. joined: one product of all parities at all
    places between tokens, ((s/2+1)^2,4C) x (4C,4C), of which each parity uses all but an edge.
    """

    def __init__(self, adapter: ImageAdapter, grid: int, *, joined: bool = False) -> None:
        super().__init__()
        self.joined = joined
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
        if joined:
            indices = [_between_index(grid // 2)]
            self.up = GatheredProducts([kernel.flatten(0, 1).clone()], indices, taps=4)
        else:
            indices = list(_up_index(grid // 2))
            self.up = GatheredProducts([weight.clone() for weight in kernel], indices, taps=4)

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
        y = self.up(around)  # parities x (B,T/4,C)
        if self.joined:
            y = self._parities(y[0])
        y = torch.relu(stacked(y))  # (B,4,T/4,C)
        # (B,p,q,s/2,s/2,C) -> rows and columns interleaved by parity
        y = y.reshape(batch, 2, 2, self.small, self.small, dim).permute(0, 3, 1, 4, 2, 5)
        y = y.reshape(batch, grid, grid, dim)
        return self.norm(gated + y if self.skip else y)

    def _parities(self, y: Tensor) -> list[Tensor]:
        """(B,(s/2+1)^2,4C) -> 4 x (B,s/2,s/2,C): parity p starts at place p."""
        small, batch = self.small, y.shape[0]
        y = y.reshape(batch, small + 1, small + 1, 4, -1)
        starts = [(p, q) for p in (0, 1) for q in (0, 1)]
        return [y[:, p : p + small, q : q + small, 2 * p + q] for p, q in starts]

    def with_scaled_input(self, scale: Tensor) -> DeployAdapter:
        """The same function of tokens that were divided by scale (C,); shares the large weights."""
        made = copy(self)
        made._modules, made._parameters = dict(self._modules), dict(self._parameters)
        made.channel = deepcopy(self.channel)
        first = next(m for m in made.channel.modules() if isinstance(m, nn.Linear))
        first.weight = constant(first.weight * scale)
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


def _between_index(half: int) -> Tensor:
    """The 2x2 padded small tokens around every place: ((s/2+1)^2*4,) in a (s/2+2)x(s/2+2) grid."""
    near = torch.arange(half + 1)[:, None] + torch.arange(2)  # (u,i)
    rows = near[:, None, :, None]  # (u,1,i,1)
    cols = near[None, :, None, :]  # (1,v,1,j)
    return (rows * (half + 2) + cols).flatten()
