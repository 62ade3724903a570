"""Transposed convolution of the image adapter with fewer multiplications, by Winograd.

Winograd's minimal filtering F(2,2) computes two neighbouring outputs of a filter of two taps g with
three products instead of four:

    y0 = d0 g0 + d1 g1 = m0 + m1      m0 = (d0 - d1) g0    m1 = d1 (g0 + g1)
    y1 = d1 g0 + d2 g1 = m1 - m2      m2 = (d1 - d2) g1

A 4x4 transposed convolution of stride 2 is four 2x2 filters, one for each parity of output row and
column. By F(2,2) along rows and columns it needs 9/16 of the multiplications, and 9/4 of the
weights. A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.export.merge.product import MatMul


class WinogradUp(nn.Module):
    """4x4 transposed convolution of stride 2 and padding 1: (B,n,n,C) -> (B,2n,2n,C).

    t = n//2 + 1 tiles per axis. A tile reads 3x3 tokens of the padded grid, the last row and column of
    which the next tile reads again, and gives 4x4 output tokens: two rows for each of two parities,
    in the order of the output, of which the first starts one row above it.
    """

    def __init__(self, weight: Tensor) -> None:
        """weight: (in,out,4,4), of nn.ConvTranspose2d."""
        super().__init__()
        # kernel rows that reach an output row of parity 1, then 0, as offsets 0 and 1 of the tile
        taps = torch.tensor([[2, 0], [3, 1]])
        kernel = weight.detach()[:, :, taps][..., taps]  # (in,out,p,i,q,j)
        points = torch.tensor([[1, 0], [1, 1], [0, 1]]).to(weight)  # g0, g0 + g1, g1
        kernel = torch.einsum("copiqj,ui,vj->uvpqoc", kernel, points, points)
        # (3,3,2,2,out,in) -> 9 x (4*out,in)
        self.products = nn.ModuleList(MatMul(k.clone()) for k in kernel.flatten(2, 4).flatten(0, 1))

    def forward(self, small: Tensor) -> Tensor:
        batch, side, _, dim = small.shape
        tiles = side // 2 + 1
        after = 2 * tiles - side
        around = F.pad(small, (0, 0, 1, after, 1, after))  # (B,2t+1,2t+1,C)
        columns = []  # row point x two columns of a tile, each (B,t,t,4C)
        for row, of_rows in enumerate(_points(around, 1)):
            of_both = zip(self.products[3 * row : 3 * row + 3], _points(of_rows, 2), strict=True)
            columns.append(_outputs([product(x) for product, x in of_both]))
        rows = [torch.stack(_outputs(of_rows), dim=2) for of_rows in zip(*columns, strict=True)]
        y = torch.stack(rows, dim=4)  # (B,t,2,t,2,4C)
        # (B,t,a,t,b,p,q,C) -> (B,t,a,p,t,b,q,C) -> (B,4t,4t,C)
        y = y.reshape(batch, tiles, 2, tiles, 2, 2, 2, dim).permute(0, 1, 2, 5, 3, 4, 6, 7)
        y = y.reshape(batch, 4 * tiles, 4 * tiles, dim)
        return y[:, 1 : 1 + 2 * side, 1 : 1 + 2 * side]


def _points(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return d0 - d1, d1 and d1 - d2 of every tile along an axis of 2t+1 tokens: 3 x (t)."""
    spans = [slice(start, x.shape[dim] - 2 + start, 2) for start in (0, 1, 2)]
    d0, d1, d2 = (x[:, span] if dim == 1 else x[:, :, span] for span in spans)
    return d0 - d1, d1, d1 - d2


def _outputs(products: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the two outputs of every tile from its three products."""
    m0, m1, m2 = products
    return m0 + m1, m1 - m2
