"""Deploy forms of the image adapter: with convolutions, MatMuls, or one of them by Winograd.

INT8 needs MatMuls: every runtime has INT8 kernels for a MatMul with a constant weight, but TensorRT
computes a quantized transposed convolution in float. FP16 keeps the convolutions, which need fewer
kernels. On CPUs the transposed convolution is fastest by Winograd when there are many tokens. Tokens
are channels-last (B,s,s,C); only the convolutions read channels-first.
"""

from __future__ import annotations

from copy import copy, deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.export.merge.forms import Forms
from save_deploy.export.merge.product import GatheredMatMuls, constant, stacked
from save_deploy.export.merge.winograd import WinogradUp
from save_deploy.model.adapters import ImageAdapter


def deploy_adapter(adapter: ImageAdapter, grid: int, forms: Forms) -> nn.Module:
    """Return the adapter in the form of forms.adapter; "off": unchanged.

    A depthwise adapter has no form "matmul" or "winograd" and is returned unchanged.
    """
    if forms.adapter == "matmul" and can_be_matmuls(adapter):
        return DeployAdapter(adapter, grid, joined=forms.joined)
    if forms.adapter == "winograd" and can_be_matmuls(adapter):
        return WinogradAdapter(adapter)
    return TokenAdapter(adapter) if forms.adapter == "tokens" else adapter


def can_be_matmuls(adapter: ImageAdapter) -> bool:
    """Return True for a full (not depthwise) 3x3 convolution followed by a 4x4 transposed one."""
    down, up = adapter.spatial[0], adapter.spatial[2]
    assert isinstance(down, nn.Conv2d) and isinstance(up, nn.ConvTranspose2d)
    return down.groups == 1 and down.kernel_size == (3, 3) and up.kernel_size == (4, 4)


class TokenAdapter(nn.Module):
    """Image adapter on tokens (B,s,s,C) -> (B,s,s,C): only the convolutions are channels-first.

    Gate, skip and norm are channels-last. TensorRT then computes the mean of the gate in the kernel
    of the preceding norm and needs one copy of the tokens less.
    """

    def __init__(self, adapter: ImageAdapter) -> None:
        super().__init__()
        self.channel, self.spatial = adapter.channel, adapter.spatial
        self.norm, self.skip = adapter.norm, adapter.skip

    def forward(self, tokens: Tensor) -> Tensor:
        gated = tokens * self.channel(tokens.mean(dim=(1, 2)))[:, None, None, :]
        # (B,s,s,C) -> (B,C,s,s) for the convolutions -> (B,s,s,C)
        y = self.spatial(gated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(_add(self.skip, tokens, gated, y))


class WinogradAdapter(nn.Module):
    """Image adapter on tokens (B,s,s,C) -> (B,s,s,C), the transposed convolution as WinogradUp."""

    def __init__(self, adapter: ImageAdapter) -> None:
        super().__init__()
        up = adapter.spatial[2]
        assert isinstance(up, nn.ConvTranspose2d)
        self.channel, self.norm, self.skip = adapter.channel, adapter.norm, adapter.skip
        self.down, self.up = adapter.spatial[0], WinogradUp(up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        gated = tokens * self.channel(tokens.mean(dim=(1, 2)))[:, None, None, :]
        # (B,s,s,C) -> (B,C,s,s) for the convolution -> (B,s/2,s/2,C)
        small = torch.relu(self.down(gated.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.norm(_add(self.skip, tokens, gated, torch.relu(self.up(small))))


class DeployAdapter(nn.Module):
    """Image adapter with MatMuls instead of convolutions: (B,s,s,C) -> (B,s,s,C).

    T = s*s tokens. Gate, skip and norm are the eager modules.
    Down: a 3x3 kernel of stride 2 is one MatMul (T/4,9C) x (9C,C).
    Up: an output token of row and column parity (p,q) reads 2x2 tokens of the small grid. The
        transposed convolution is four MatMuls (T/4,4C) x (4C,C) with the same number of
        multiplications.
    Up, joined: one MatMul ((s/2+1)^2,4C) x (4C,4C) for every 2x2 window of the padded small grid
        and all four parities. Each parity uses these windows without one edge row and one edge
        column.
    """

    input_scale: nn.Parameter | None  # (C,)

    def __init__(self, adapter: ImageAdapter, grid: int, *, joined: bool = False) -> None:
        super().__init__()
        self.joined = joined
        self.channel, self.norm, self.skip = adapter.channel, adapter.norm, adapter.skip
        self.small = grid // 2
        self.register_parameter("input_scale", None)  # set by with_scaled_input
        down, up = adapter.spatial[0], adapter.spatial[2]
        assert isinstance(down, nn.Conv2d) and isinstance(up, nn.ConvTranspose2d)
        dim = down.in_channels
        # (out,in,3,3) -> (out,3*3*in)
        weight = down.weight.permute(0, 2, 3, 1).reshape(dim, 9 * dim).contiguous()
        self.down = GatheredMatMuls([weight], [_down_index(grid)], taps=9)
        # kernel rows of the transposed convolution that reach parity p:
        # p=0 reads offsets (-1,0) with rows (3,1), p=1 reads offsets (0,1) with rows (2,0)
        taps = torch.tensor([[3, 1], [2, 0]])
        kernel = up.weight[:, :, taps][..., taps]  # (in,out,p,i,q,j)
        kernel = kernel.permute(2, 4, 1, 3, 5, 0).reshape(4, dim, 4 * dim)  # (p*q,out,i*j*in)
        if joined:
            indices = [_between_index(grid // 2)]
            weight = kernel.flatten(0, 1).clone()  # (4*out,4*in)
            self.up = GatheredMatMuls([weight], indices, taps=4)
        else:
            indices = list(_up_index(grid // 2))
            self.up = GatheredMatMuls([weight.clone() for weight in kernel], indices, taps=4)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, grid, _, dim = tokens.shape
        gate = self.channel(tokens.mean(dim=(1, 2)))  # (B,C)
        if self.input_scale is not None:
            gate = gate * self.input_scale
        gated = tokens * gate[:, None, None, :]
        if self.input_scale is not None and self.skip == "input":
            tokens = tokens * self.input_scale
        around = F.pad(gated, (0, 0, 1, 1, 1, 1)).flatten(1, 2)  # (B,(s+2)^2,C)
        # (B,T/4,C) -> (B,s/2,s/2,C); ReLU after the reshape, because directly after a MatMul it
        # would prevent ONNX Runtime's INT8 fusion
        small = torch.relu(self.down(around)[0].reshape(batch, self.small, self.small, dim))
        around = F.pad(small, (0, 0, 1, 1, 1, 1)).flatten(1, 2)  # (B,(s/2+2)^2,C)
        y = self.up(around)  # parities x (B,T/4,C)
        if self.joined:
            y = self._parities(y[0])
        y = torch.relu(stacked(y))  # (B,4,T/4,C)
        # (B,4,T/4,C) -> (B,p,q,s/2,s/2,C) -> (B,s/2,p,s/2,q,C): rows and columns alternate in parity
        y = y.reshape(batch, 2, 2, self.small, self.small, dim).permute(0, 3, 1, 4, 2, 5)
        y = y.reshape(batch, grid, grid, dim)  # (B,s,s,C)
        return self.norm(_add(self.skip, tokens, gated, y))

    def _parities(self, y: Tensor) -> list[Tensor]:
        """Cut the windows of each parity p from p on: (B,(s/2+1)^2,4C) -> 4 x (B,s/2,s/2,C)."""
        small, batch = self.small, y.shape[0]
        y = y.reshape(batch, small + 1, small + 1, 4, -1)  # (B,s/2+1,s/2+1,4,C)
        starts = [(p, q) for p in (0, 1) for q in (0, 1)]
        return [y[:, p : p + small, q : q + small, 2 * p + q] for p, q in starts]

    def with_scaled_input(self, scale: Tensor) -> DeployAdapter:
        """Return an adapter that gives the same output for tokens divided by scale (C,).

        It shares the convolution weights with this one and has its own gate weights.
        """
        made = copy(self)
        made._modules, made._parameters = dict(self._modules), dict(self._parameters)
        made.channel = deepcopy(self.channel)
        first = next(m for m in made.channel.modules() if isinstance(m, nn.Linear))
        first.weight = constant(first.weight * scale)
        made.input_scale = nn.Parameter(scale.clone(), requires_grad=False)
        return made


def _add(skip: str, tokens: Tensor, gated: Tensor, y: Tensor) -> Tensor:
    """Return the input of the norm; all tensors are (B,s,s,C)."""
    return y if skip == "none" else (gated if skip == "gated" else tokens) + y


def _down_index(grid: int) -> Tensor:
    """Return the positions that a 3x3 kernel of stride 2 reads.

    (T/4*9,) in the padded (s+2)x(s+2) grid.
    """
    start, tap = torch.arange(0, grid, 2), torch.arange(3)
    rows = (start[:, None] + tap)[:, None, :, None]  # (h,1,3,1)
    cols = (start[:, None] + tap)[None, :, None, :]  # (1,w,1,3)
    return (rows * (grid + 2) + cols).flatten()  # (h,w,3,3) -> (h*w*9,)


def _up_index(half: int) -> Tensor:
    """Return the positions that each parity (p,q) reads.

    (4,T/4*4) in the padded (s/2+2)x(s/2+2) small grid.
    """
    near = torch.arange(half)[None, :, None] + torch.tensor([[0, 1], [1, 2]])[:, None]  # (p,h,i)
    rows = near[:, None, :, None, :, None]  # (p,1,h,1,i,1)
    cols = near[None, :, None, :, None, :]  # (1,q,1,w,1,j)
    return (rows * (half + 2) + cols).reshape(4, -1)  # (p,q,h,w,i,j) -> (p*q,h*w*i*j)


def _between_index(half: int) -> Tensor:
    """Return the positions of all 2x2 windows.

    ((s/2+1)^2*4,) in the padded (s/2+2)x(s/2+2) small grid.
    """
    near = torch.arange(half + 1)[:, None] + torch.arange(2)  # (u,i)
    rows = near[:, None, :, None]  # (u,1,i,1)
    cols = near[None, :, None, :]  # (1,v,1,j)
    return (rows * (half + 2) + cols).flatten()  # (u,v,i,j) -> (u*v*4,)
