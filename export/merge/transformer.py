"""Deploy forms of the mask decoder's two-way transformer: folded query scale, joined products.

DeployTransformer computes segment-anything's operations in their order. JoinedTransformer uses W(x
+ position) = W x + W position, so that products of the same tokens can be joined. For image tokens
W position is a constant. The positions of the prompt tokens are the prompt tokens at the input of
the transformer, so one product at its start computes all their W position.
Shapes: P prompt tokens (output tokens included), T image tokens, hd channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn

from save_deploy.export.merge.product import MatMul, Scores, constant, linear


class _Attend(nn.Module):
    """Attention of projected q, k and v, with the output projection."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.num_heads = attn.num_heads
        self.scores, self.out_proj = Scores(), attn.out_proj

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention of q (B,heads,P,hd) to k and v (B,heads,T,hd): (B,P,256)."""
        out = self.scores(q, k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B,P,heads,hd) -> (B,P,heads*hd)

    def heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split (B,P,parts*heads*hd) into parts x (B,heads,P,hd) by one transposition."""
        x = x.unflatten(2, (parts, self.num_heads, -1))  # (B,P,parts,heads,hd)
        return x.permute(2, 0, 3, 1, 4).unbind(0)


class _Attention(_Attend):
    """segment-anything's attention with the scale 1 / sqrt(hd) folded into the weights of q."""

    def __init__(self, attn: Attention) -> None:
        super().__init__(attn)
        self.q_proj, self.k_proj, self.v_proj = _scaled_query(attn), attn.k_proj, attn.v_proj

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention of q (B,P,256) to k and v (B,T,256): (B,P,256)."""
        parts = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        # (B,P,heads*hd) -> (B,heads,P,hd)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in parts)
        return self.attend(q, k, v)


class _Layer(nn.Module):
    """segment-anything's TwoWayAttentionBlock on queries (B,P,256) and keys (B,T,256)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.first = layer.skip_first_layer_pe
        self.self_attn = _Attention(layer.self_attn)
        self.cross_attn_token_to_image = _Attention(layer.cross_attn_token_to_image)
        self.cross_attn_image_to_token = _Attention(layer.cross_attn_image_to_token)
        self.mlp = layer.mlp
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.norm3, self.norm4 = layer.norm3, layer.norm4

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)
        q, k = queries + query_pe, keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(q, k, keys))
        queries = self.norm3(queries + self.mlp(queries))
        q, k = queries + query_pe, keys + key_pe
        return queries, self.norm4(keys + self.cross_attn_image_to_token(k, q, queries))


class DeployTransformer(nn.Module):
    """TwoWayTransformer: tokens (B,P,256), image_tokens (B,T,256) -> queries, keys, same shapes."""

    def __init__(self, transformer: TwoWayTransformer, image_pe: Tensor) -> None:
        super().__init__()
        self.image_pe = constant(image_pe)  # (1,T,256)
        self.layers = nn.ModuleList(_Layer(layer) for layer in transformer.layers)
        self.final_attn_token_to_image = _Attention(transformer.final_attn_token_to_image)
        self.norm_final_attn = transformer.norm_final_attn

    def forward(self, tokens: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = tokens, image_tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, self.image_pe)
        attended = self.final_attn_token_to_image(queries + tokens, keys + self.image_pe, keys)
        return self.norm_final_attn(queries + attended), keys


class _JoinedLayer(nn.Module):
    """_Layer with joined products: queries (B,P,256), keys (B,T,256), shares -> queries, keys.

    shares: three parts of JoinedTransformer.token_products: W position + bias of self_qkv, token_q
        and token_kv. Self attention of the first layer reads only the tokens, so its part is the
        whole product and self_qkv is None.
    """

    def __init__(self, layer: Any, image_pe: Tensor) -> None:
        super().__init__()
        this, image, token = (
            layer.self_attn,
            layer.cross_attn_token_to_image,
            layer.cross_attn_image_to_token,
        )
        joined = [
            _join([_scaled_query(this), this.k_proj], [this.v_proj]),
            _join([_scaled_query(image)], []),
            _join([token.k_proj], [token.v_proj]),
        ]
        self.self_qkv = None if layer.skip_first_layer_pe else MatMul(joined[0][0])
        self.token_q, self.token_kv = MatMul(joined[1][0]), MatMul(joined[2][0])
        shared = [(of_position, bias) for _, of_position, bias in joined]
        if self.self_qkv is None:  # self attention without positions: W x + bias of the tokens
            shared[0] = (joined[0][0], joined[0][2])
        self.shared = shared  # JoinedTransformer takes these and deletes the attribute
        # products of the image tokens: k and v of token-to-image attention, q of image-to-token
        parts = [
            _join([image.k_proj], []),
            _join([], [image.v_proj]),
            _join([_scaled_query(token)], []),
        ]
        self.image_kvq, self.table = _image_product(parts, image_pe)
        self.self_attn = _Attend(this)
        self.cross_attn_token_to_image = _Attend(image)
        self.cross_attn_image_to_token = _Attend(token)
        self.mlp = layer.mlp
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.norm3, self.norm4 = layer.norm3, layer.norm4

    def forward(
        self, queries: Tensor, keys: Tensor, shares: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        this, image, token = (
            self.self_attn, self.cross_attn_token_to_image, self.cross_attn_image_to_token,
        )  # fmt: skip
        if self.self_qkv is None:
            queries = this.attend(*this.heads(shares[0], 3))
        else:
            qkv = self.self_qkv(queries) + shares[0]
            queries = queries + this.attend(*this.heads(qkv, 3))
        queries = self.norm1(queries)
        k, v, of_image = image.heads(self.image_kvq(keys) + self.table, 3)
        (q,) = image.heads(self.token_q(queries) + shares[1], 1)
        queries = self.norm2(queries + image.attend(q, k, v))
        queries = self.norm3(queries + self.mlp(queries))
        k, v = token.heads(self.token_kv(queries) + shares[2], 2)
        return queries, self.norm4(keys + token.attend(of_image, k, v))


class JoinedTransformer(nn.Module):
    """TwoWayTransformer with joined products that returns only one query.

    tokens (B,P,256), image_tokens (B,T,256) -> query `row` (B,256), keys (B,T,256). The last
    attention is computed only for this query.
    """

    def __init__(self, transformer: TwoWayTransformer, image_pe: Tensor, row: int) -> None:
        super().__init__()
        self.row = row
        layers = [_JoinedLayer(layer, image_pe) for layer in transformer.layers]
        self.layers = nn.ModuleList(layers)
        last = transformer.final_attn_token_to_image
        of_query, *shared = _join([_scaled_query(last)], [])
        self.final_q = MatMul(of_query)
        self.final_kv, self.final_table = _image_product(
            [_join([last.k_proj], []), _join([], [last.v_proj])], image_pe
        )
        self.final_attn_token_to_image = _Attend(last)
        self.norm_final_attn = transformer.norm_final_attn
        shares = [share for layer in layers for share in layer.shared] + [tuple(shared)]
        for layer in layers:
            del layer.shared
        self.token_products = linear(*(torch.cat(parts) for parts in zip(*shares, strict=True)))
        self.widths = [len(bias) for _, bias in shares]

    def forward(self, tokens: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.token_products(tokens).split(self.widths, dim=2)
        queries, keys = tokens, image_tokens
        for i, layer in enumerate(self.layers):
            queries, keys = layer(queries, keys, shares[3 * i : 3 * i + 3])
        own = slice(self.row, self.row + 1)
        query, last = queries[:, own], self.final_attn_token_to_image
        (q,) = last.heads(self.final_q(query) + shares[-1][:, own], 1)
        k, v = last.heads(self.final_kv(keys) + self.final_table, 2)
        return self.norm_final_attn(query + last.attend(q, k, v))[:, 0], keys


def _scaled_query(attn: Attention) -> nn.Linear:
    scale = (attn.internal_dim // attn.num_heads) ** -0.5
    return linear(attn.q_proj.weight * scale, attn.q_proj.bias * scale)


def _join(
    with_position: Sequence[nn.Linear], without: Sequence[nn.Linear]
) -> tuple[Tensor, Tensor, Tensor]:
    """Join linears of x + position and linears of x.

    Returns the weight of x (N,256), the weight of the position (N,256), which is zero for linears
    of x, and the bias (N,).
    """
    linears = [*with_position, *without]
    weights = [linear.weight for linear in linears]
    reads = [*with_position, *[None] * len(without)]
    of_position = [
        w if read else torch.zeros_like(w) for w, read in zip(weights, reads, strict=True)
    ]
    bias = torch.cat([linear.bias for linear in linears])
    return torch.cat(weights), torch.cat(of_position), bias


def _image_product(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], image_pe: Tensor
) -> tuple[MatMul, nn.Parameter]:
    """Join parts made by _join into one product of the image tokens: (B,T,256) -> (B,T,N).

    Returns the product and the constant W position + bias (1,T,N), which the caller adds.
    """
    weight, of_position, bias = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return MatMul(weight), constant(nn.functional.linear(image_pe, of_position, bias))
