"""Exact scaling between a LayerNorm and the linears that read it (SmoothQuant, arXiv 2211.10438).

An activation has one scale, so a few channels of large values take most of its range. Dividing the
affine parameters of the norm by s per channel, and multiplying the rows of the linear's weight by
s, gives the same result and moves the range into the weights, which have a scale per output
channel. s is a power of two, so nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from save_deploy.calibration.channels import Channels
from save_deploy.calibration.table import MAX_EXPONENT, Smoothing
from save_deploy.errors import ExportError
from save_deploy.export.merge.adapter import DeployAdapter
from save_deploy.export.merge.block import DeployBlock
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.product import MatMul
from save_deploy.export.merge.proof import RewriteProof, count_parameters, relative_difference
from save_deploy.export.quantize.weights import FORMATS, quantize_weight, scale_of, to_format

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.75)
WORTH = 0.98  # the squared error must fall below this share, or the scale is not used
_SIDE = 8  # tokens per side in the proof, for modules that take any number of tokens


def product_error(
    rows: NDArray[np.float32], weight: NDArray[np.float32], amax: float, *, fmt: str = "int8",
    shift: NDArray[np.floating] | None = None,
) -> float:  # fmt: skip
    """Return the mean squared error of rows (R,K) @ weight (K,N) with both quantized.

    amax: clip threshold of the rows.
    shift: (N,), added to the quantized product.
    """
    chosen = FORMATS[fmt]
    scale = scale_of(amax, chosen)
    numbers, scales = quantize_weight(weight, chosen, clips=(1.0,))
    rounded = to_format(rows, scale, chosen).astype(np.float32) * scale
    got = rounded @ (numbers.astype(np.float32) * scales)
    if shift is not None:
        got = got + shift
    return float(np.square(got - rows @ weight).mean())


def choose_smoothing(
    channels: Channels, weight: NDArray[np.float32], *, alphas: tuple[float, ...] = ALPHAS
) -> Smoothing | None:
    """Return the smoothing with the least output error on the sampled rows, or None.

    None means that no alpha lowers the squared error to WORTH of its value.
    weight: (K,N).
    scale = amax(x)^alpha / amax(w)^(1-alpha) per channel, normalized to geometric mean 1 and
    rounded to the nearest power of two.
    """
    rows, weight_top = channels.rows, np.abs(weight).max(axis=1)  # (K,)
    used = (channels.amax > 0) & (weight_top > 0)
    least = WORTH * product_error(rows, weight, float(channels.amax.max()))
    best = None
    for alpha in alphas:
        exponents = np.zeros(len(used), int)
        raw = alpha * np.log2(channels.amax[used]) - (1 - alpha) * np.log2(weight_top[used])
        nearest = np.rint(raw - raw.mean()).astype(int)
        exponents[used] = np.clip(nearest, -MAX_EXPONENT, MAX_EXPONENT)
        found = Smoothing(alpha, tuple(exponents))
        factor = found.scale
        error = product_error(
            rows / factor, weight * factor[:, None], float((channels.amax / factor).max())
        )
        if error < least:
            least, best = error, found
    return best


@torch.no_grad()
def apply_smoothing(deploy: DeployModel, smoothing: Mapping[str, Smoothing]) -> RewriteProof | None:
    """Scale norms and their readers in place, and return the proof; None without smoothing.

    Only the deploy model changes: modules shared with the eager model are replaced by copies.
    Raises ExportError for a norm that the model does not have, one of another width, or one whose
    reader cannot be scaled in this form of the graph.
    """
    worst = 0.0
    for name, found in smoothing.items():
        block, norm = _block_of(deploy, name)
        scale = torch.from_numpy(found.scale)
        if norm.weight.shape != scale.shape:
            raise ExportError(
                "smoothing does not fit the model",
                got=f"{len(scale)} channels for {name}",
                expected=f"{len(norm.weight)}",
                hint="save-calibrate measures this model",
            )
        if not can_smooth(block, name.rpartition(".")[2]):
            raise ExportError(
                "the ranges were measured on another form of the graph",
                got=f"{name} is scaled, and a part that is not rewritten reads it",
                expected="the rewrites of the calibration, including all of the image adapter",
                hint="omit --no-merge, or omit --calibration-table to measure this form",
            )
        worst = max(worst, _smooth_first(block, scale) if name.endswith("norm1")
                    else _smooth_second(block, scale))  # fmt: skip
    if not smoothing:
        return None
    count = count_parameters([deploy])
    return RewriteProof(
        name="smooth",
        folded=f"{len(smoothing)} norms divided by a scale per channel, products that read them "
        "multiplied",
        kept="norms where smoothing does not lower the error",
        params_before=count,
        params_after=count,
        macs_before=0,
        macs_after=0,
        max_rel_diff=worst,
        compared="every smoothed norm with all its readers",
    )


def _block_of(deploy: DeployModel, name: str) -> tuple[DeployBlock, nn.LayerNorm]:
    """Return the block and the norm of a name such as blocks.3.norm1. Raises ExportError."""
    try:
        norm = deploy.get_submodule(name)
        block = deploy.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        norm = block = None  # type: ignore[assignment]
    if not isinstance(norm, nn.LayerNorm) or not isinstance(block, DeployBlock):
        raise ExportError(
            "smoothing names a norm that the model does not have",
            got=name,
            expected=f"blocks.0.norm1 to blocks.{len(deploy.blocks) - 1}.norm2",
            hint="save-calibrate measures this model",
        )
    return block, norm


def _smooth_first(block: DeployBlock, scale: Tensor) -> float:
    """Scale norm1 and qkv; return the relative difference in float64."""
    norm, qkv = block.norm1, cast(MatMul, block.attn.qkv)  # apply_smoothing() asked can_smooth()
    smoothed = MatMul(qkv.weight * scale)
    x = _tokens(len(scale))
    block.norm1 = _divided(norm, scale)
    block.attn.qkv = smoothed
    return _difference((norm, qkv), (block.norm1, smoothed), x)


def _smooth_second(block: DeployBlock, scale: Tensor) -> float:
    """Scale norm2, lin1 and a parallel image adapter; return the float64 relative difference."""
    norm, mlp, adapter = block.norm2, block.mlp, block.adapter
    block.norm2 = _divided(norm, scale)
    block.mlp = deepcopy(mlp, {id(mlp.lin2): mlp.lin2})
    block.mlp.lin1.weight = nn.Parameter(mlp.lin1.weight * scale, requires_grad=False)
    worst = _difference((norm, mlp.lin1), (block.norm2, block.mlp.lin1), _tokens(len(scale)))
    if adapter is None or block.position != "parallel":
        return worst
    assert isinstance(adapter, DeployAdapter)  # apply_smoothing() has checked can_smooth()
    smoothed = adapter.with_scaled_input(scale)
    block.adapter = smoothed
    tokens = _tokens(len(scale), side=2 * adapter.small)
    return max(worst, _difference((norm, adapter), (block.norm2, smoothed), tokens))


def can_smooth(block: DeployBlock, norm: str) -> bool:
    """Return True when every reader of a norm (norm1 or norm2) can be scaled.

    An adapter in its eager form reads the output of norm2 and cannot be scaled.
    """
    if norm == "norm1":
        return isinstance(block.attn.qkv, MatMul)
    beside = block.adapter is not None and block.position == "parallel"
    return not beside or isinstance(block.adapter, DeployAdapter)


def _divided(norm: nn.LayerNorm, scale: Tensor) -> nn.LayerNorm:
    made = deepcopy(norm)
    made.weight = nn.Parameter(norm.weight / scale, requires_grad=False)
    made.bias = nn.Parameter(norm.bias / scale, requires_grad=False)
    return made


def _tokens(dim: int, side: int = _SIDE) -> Tensor:
    seeded = torch.Generator().manual_seed(0)
    return torch.randn(1, side, side, dim, generator=seeded, dtype=torch.float64)


def _difference(before: tuple[nn.Module, ...], after: tuple[nn.Module, ...], x: Tensor) -> float:
    """Return the relative difference of two chains of modules in float64."""
    outputs = []
    for chain in (before, after):
        y = x
        for module in chain:
            y = deepcopy(module).double()(y)
        outputs.append(y)
    return relative_difference(*outputs)
