"""Deploy form of attention, with the rewrites windows, scale and rel_pos. Each is optional.

biases: in every form. The bias of k adds the same number to all scores of a query, which the softmax
    cancels, and the bias of v is added to every output, so it is part of the bias of proj. Without
    both, k and v of a padded token are zero.
q, k, v: one transposition each splits them into windows and heads. joined: they are parts of one
    transposed product, for which TensorRT builds one kernel instead of three.
windows: SAM pads tokens with zeros before qkv. late_pad pads q, k and v instead. The output of a padded
    query is cropped, so real_queries does not compute it, and pads only the windows at the edges. A
    padded key must stay, because real tokens attend to it.
strips: each query attends on its own, so global attention is computed for STRIP_ROWS query rows of
    one head at a time. On CPUs the scores of a strip (8 MiB at 1024 px, of all queries 768 MiB in
    ViT-B) stay in the cache and their memory is used again. Smaller strips gain nothing more and
    double the nodes of the graph.
Shapes: B frames, s x s tokens, C channels, n x n windows of w x w tokens, B' = windows of all
    frames, hd = channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.export.merge.forms import Forms
from save_deploy.export.merge.product import MatMul, MatMuls, Scores, constant, linear

STRIP_ROWS = 8  # rows of queries


class _Part(NamedTuple):
    """n_rows x n_cols windows, the first at (row, col).

    Of each window the first height x width tokens.
    """

    row: int
    col: int
    n_rows: int
    n_cols: int
    height: int
    width: int


class DeployAttention(nn.Module):
    """SAM's attention for one grid size in the form of `forms`: (B,s,s,C) -> (B,s,s,C)."""

    def __init__(self, attn: Attention, window_size: int, grid: int, forms: Forms) -> None:
        super().__init__()
        self.num_heads, self.grid = attn.num_heads, grid
        self.side = window_size or grid
        self.n_windows = -(-grid // self.side)  # per axis
        self.windows = forms.windows if self.n_windows * self.side > grid else "late_pad"
        self.joined = forms.joined and self.windows != "real_queries"
        self.rel_pos = forms.rel_pos
        if self.rel_pos in ("fold_global", "strips") and window_size:
            self.rel_pos = "bias"
        self.scale = 1.0 if forms.scale else attn.scale
        weights, biases = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
        scaled = weights[0] * attn.scale if forms.scale else weights[0]
        q_bias = biases[0] * attn.scale if forms.scale else biases[0]
        if forms.separate_qkv and not self.joined:
            self.qkv: MatMul | MatMuls = MatMuls([scaled, *weights[1:]])
        else:
            self.qkv = MatMul(torch.cat([scaled, *weights[1:]]) if forms.scale else attn.qkv.weight)
        if self.joined:
            self.qkv_bias = constant(torch.cat([q_bias, q_bias.new_zeros(2 * len(q_bias))]))
        else:
            self.q_bias = constant(q_bias)
        self.proj = linear(attn.proj.weight, attn.proj.bias + attn.proj.weight @ biases[2])
        # (side,hd,side): query row, channel, key row. The tables are for the unscaled query
        table_scale = attn.scale if forms.scale else 1.0
        rel_h = get_rel_pos(self.side, self.side, attn.rel_pos_h) / table_scale
        rel_w = get_rel_pos(self.side, self.side, attn.rel_pos_w) / table_scale
        tables = [rel.transpose(1, 2).contiguous() for rel in (rel_h, rel_w)]
        if self.joined and self.rel_pos != "off":
            self.rel_both = constant(torch.cat(tables))  # (2*side,hd,side)
        else:
            self.rel_h, self.rel_w = constant(tables[0]), constant(tables[1])
        if self.rel_pos == "fold_global":
            self.key_columns = constant(_one_hot_keys(self.side).to(rel_h.dtype))
        self.scores = Scores()

    def forward(self, x: Tensor) -> Tensor:
        side, n = self.side, self.n_windows
        pad = n * side - self.grid
        padding = (0, 0, 0, pad, 0, pad)
        if self.windows == "off":
            x = F.pad(x, padding)  # (B,n*w,n*w,C)
        if self.joined:
            qkv = self.qkv(x)  # (B,s,s,3C)
            if self.windows != "off" and pad:
                qkv = F.pad(qkv, padding)  # (B,n*w,n*w,3C)
            out = self._joined(qkv + self.qkv_bias)  # (B,n*w,n*w,C)
        else:
            product = self.qkv(x)  # 3 x (B,s,s,C), or (B,s,s,3C)
            if isinstance(product, Tensor):  # sliced, because a Split loses the name of its module
                dim = product.shape[3] // 3
                product = [product[..., i * dim : (i + 1) * dim] for i in range(3)]
            q, k, v = product
            q = q + self.q_bias
            if self.windows == "real_queries":
                return self.proj(self._real_queries(q, k, v))
            out = self._windows(q, k, v, _Part(0, 0, n, n, side, side))
        if self.windows == "off":
            return self.proj(out)[:, : self.grid, : self.grid]
        return self.proj(out[:, : self.grid, : self.grid] if pad else out)

    def _joined(self, qkv: Tensor) -> Tensor:
        """Compute attention of all tokens in every window: (B,n*w,n*w,3C) -> (B,n*w,n*w,C)."""
        side, n, heads = self.side, self.n_windows, self.num_heads
        batch, dim = qkv.shape[0], qkv.shape[3] // 3
        if n > 1:
            # (B,n*w,n*w,3C) -> (B,n,w,n,w,3,heads,hd)
            qkv = qkv.reshape(batch, n, side, n, side, 3, heads, dim // heads)
            qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # (3,B,n,n,heads,w,w,hd)
        else:
            # (B,w,w,3C) -> (B,w*w,3,heads,hd) -> (3,B,heads,w*w,hd)
            qkv = qkv.reshape(batch, -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        # -> 3 x (B',heads,w*w,hd)
        q, k, v = qkv.reshape(3, -1, heads, side * side, dim // heads).unbind(0)
        return self._from_heads(self._attend(q, k, v, side, side), _Part(0, 0, n, n, side, side))

    def _real_queries(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention of tokens that are not padding: 3 x (B,s,s,C) -> (B,s,s,C)."""
        whole, rest = divmod(self.grid, self.side)  # complete windows per axis, tokens in the last
        # first window, number of windows, queries per window, for each axis
        cuts = [(0, whole, self.side), (whole, 1, rest)] if whole else [(0, 1, rest)]
        rows = []
        for row, n_rows, height in cuts:
            parts = [_Part(row, col, n_rows, n_cols, height, width) for col, n_cols, width in cuts]
            rows.append(torch.cat([self._windows(q, k, v, part) for part in parts], dim=2))
        return torch.cat(rows, dim=1)

    def _windows(self, q: Tensor, k: Tensor, v: Tensor, part: _Part) -> Tensor:
        """Compute attention in the windows of a part; all tokens of a window are keys.

        q, k and v of real tokens (B,s,s,C), or of all with padding (B,n*w,n*w,C)
        -> (B,n_rows*height,n_cols*width,C).
        """
        keys = part._replace(height=self.side, width=self.side)
        q, k, v = self._to_heads(q, part), self._to_heads(k, keys), self._to_heads(v, keys)
        return self._from_heads(self._attend(q, k, v, part.height, part.width), part)

    def _to_heads(self, tokens: Tensor, part: _Part) -> Tensor:
        """Return the tokens of a part by window and head.

        (B,s,s,C), or all with padding (B,n*w,n*w,C) -> (B',heads,h*w,hd). Tokens that a window lacks
        are padding, zero.
        """
        row, col, n_rows, n_cols, height, width = part
        if (n_rows, n_cols) != (self.n_windows, self.n_windows):
            top, left = row * self.side, col * self.side
            tokens = tokens[:, top : top + n_rows * height, left : left + n_cols * width]
        batch, rows, cols, dim = tokens.shape
        below, right = n_rows * height - rows, n_cols * width - cols
        if below or right:
            tokens = F.pad(tokens, (0, 0, 0, right, 0, below))
        if n_rows * n_cols == 1:
            # (B,h,w,C) -> (B,h*w,heads,hd) -> (B,heads,h*w,hd)
            return tokens.reshape(batch, height * width, self.num_heads, -1).transpose(1, 2)
        # (B,n_rows*h,n_cols*w,C) -> (B,n_rows,h,n_cols,w,heads,hd)
        tokens = tokens.reshape(batch, n_rows, height, n_cols, width, self.num_heads, -1)
        tokens = tokens.permute(0, 1, 3, 5, 2, 4, 6)  # (B,n_rows,n_cols,heads,h,w,hd)
        return tokens.reshape(-1, self.num_heads, height * width, dim // self.num_heads)

    def _from_heads(self, out: Tensor, part: _Part) -> Tensor:
        """Return a part's outputs as tokens: (B',heads,h*w,hd) -> (B,n_rows*h,n_cols*w,C)."""
        _, _, n_rows, n_cols, height, width = part
        count, heads, _, head_dim = out.shape
        batch, dim = count // (n_rows * n_cols), heads * head_dim
        if n_rows * n_cols == 1:
            # (B,heads,h*w,hd) -> (B,h*w,heads,hd) -> (B,h,w,C)
            return out.transpose(1, 2).reshape(batch, height, width, dim)
        # (B',heads,h*w,hd) -> (B,n_rows,n_cols,heads,h,w,hd) -> (B,n_rows,h,n_cols,w,heads,hd)
        out = out.reshape(batch, n_rows, n_cols, heads, height, width, head_dim)
        out = out.permute(0, 1, 4, 2, 5, 3, 6)
        return out.reshape(batch, n_rows * height, n_cols * width, dim)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, height: int, width: int) -> Tensor:
        """Compute attention of q (B',heads,h*w,hd) to k and v (B',heads,side*side,hd).

        Returns (B',heads,h*w,hd).
        """
        rows, cols = self._rel_pos_terms(q, height, width)  # (B',heads,h,w,side) each
        count, heads, length, head_dim = q.shape
        if self.rel_pos == "fold_global":
            terms = [q * self.scale] + [t.reshape(count, heads, length, -1) for t in (rows, cols)]
            q = torch.cat(terms, dim=-1)  # (B',heads,L,hd+2*side)
            columns = self.key_columns.expand(count, heads, -1, -1)
            # fused attention on a GPU needs v as wide as q and k. The same columns pad v, which
            # saves a tensor of zeros, and the output is cut to the head's width
            k, v = (torch.cat([t, columns], dim=-1) for t in (k, v))
            return (self.scores(q, k.transpose(-2, -1)).softmax(dim=-1) @ v)[..., :head_dim]
        q = q * self.scale if self.scale != 1.0 else q
        parts = [q, k.transpose(-2, -1), v, rows[..., :, None], cols[..., None, :]]
        if self.rel_pos != "strips":
            return self._biased(*parts)
        of_heads = []
        for head in zip(*(part.split(1, dim=1) for part in parts), strict=True):
            q, k, v, rows, cols = head
            strips = zip(
                q.split(STRIP_ROWS * width, dim=2),
                rows.split(STRIP_ROWS, dim=2),
                cols.split(STRIP_ROWS, dim=2),
                strict=True,
            )
            of_heads.append(torch.cat([self._biased(q, k, v, *bias) for q, *bias in strips], dim=2))
        return torch.cat(of_heads, dim=1)

    def _biased(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Compute attention of queries (B',heads,h*w,hd) with relative positions: the same shape.

        k: (B',heads,hd,side*side), v: (B',heads,side*side,hd), rows: (B',heads,h,w,side,1), cols:
        (B',heads,h,w,1,side).
        """
        bias = rows + cols  # (B',heads,h,w,side,side)
        bias = bias.reshape(*q.shape[:3], -1)  # (B',heads,h*w,side*side)
        return self.scores(q, k, bias).softmax(dim=-1) @ v

    def _rel_pos_terms(self, q: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return q.Rh and q.Rw of every query: 2 x (B',heads,h,w,side).

        off: SAM's einsum. Otherwise a batched product over query rows (columns), so that the tables
            need no broadcast over frames and heads: TensorRT would copy them in two more kernels
            per block.
        joined: one batched product for rows and columns.
        """
        count, heads, _, head_dim = q.shape
        grid = q.reshape(count * heads, height, width, head_dim)  # (B'h,h,w,hd)
        shape = (count, heads, height, width, self.side)
        if self.joined and self.rel_pos != "off":
            # (h,B'h,w,hd), (w,B'h,h,hd), each -> (side,B'h*side,hd)
            rows_of_q, cols_of_q = grid.transpose(0, 1), grid.permute(2, 0, 1, 3)
            both = torch.cat([t.reshape(self.side, -1, head_dim) for t in (rows_of_q, cols_of_q)])
            terms = (both @ self.rel_both).reshape(2, self.side, -1, self.side, self.side)
            rows, cols = terms.unbind(0)  # (h,B'h,w,k), (w,B'h,h,k)
            return rows.transpose(0, 1).reshape(shape), cols.permute(1, 2, 0, 3).reshape(shape)
        rel_h: Tensor = self.rel_h
        rel_w: Tensor = self.rel_w
        # no slice of all rows: it would lose the table's name in ONNX
        if (height, width) != (self.side, self.side):
            rel_h, rel_w = rel_h[:height], rel_w[:width]
        if self.rel_pos == "off":
            rows = torch.einsum("bhwc,hck->bhwk", grid, rel_h)
            cols = torch.einsum("bhwc,wck->bhwk", grid, rel_w)
        else:
            rows = grid.transpose(0, 1).reshape(height, -1, head_dim) @ rel_h  # (h,B'h*w,k)
            rows = rows.reshape(height, -1, width, self.side).transpose(0, 1)  # (B'h,h,w,k)
            cols = grid.permute(2, 0, 1, 3).reshape(width, -1, head_dim) @ rel_w  # (w,B'h*h,k)
            cols = cols.reshape(width, -1, height, self.side).permute(1, 2, 0, 3)  # (B'h,h,w,k)
        return rows.reshape(shape), cols.reshape(shape)


def _one_hot_keys(side: int) -> Tensor:
    """Return one-hot row and column of every key: (1,1,side*side,2*side)."""
    eye = torch.eye(side)
    rows = eye[:, None].expand(side, side, side)
    cols = eye[None, :].expand(side, side, side)
    # (side,side,2*side) -> (1,1,side*side,2*side)
    return torch.cat([rows, cols], dim=-1).reshape(1, 1, side * side, 2 * side)
