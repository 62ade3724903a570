"""Constant matrices -> 8-bit numbers and one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import ExportError
from save_deploy.export.fp16 import FP16_MAX

# Shares of a channel's largest weight at which it may be clipped; the one of least squared error wins.
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8)
_CHUNK = 1 << 24  # numbers quantized at a time


@dataclass(frozen=True)
class Format:
    """levels: the largest number of the format."""

    name: str
    levels: float
    dtype: np.dtype


FORMATS = {
    "int8": Format("int8", 127.0, np.dtype(np.int8)),
    "fp8": Format("fp8", 448.0, np.dtype(ml_dtypes.float8_e4m3fn)),
}


def scale_of(
    amax: NDArray[np.floating] | float, fmt: Format, *, name: str = "a tensor"
) -> NDArray[np.float32]:
    """amax / levels, rounded up to a number that FP16 holds too.

    So the 8-bit numbers are the same whether the float parts of a graph are FP32 or FP16, and the
    largest value never overflows. Zero gives the smallest FP16 number.
    Raises ExportError, with `name` of the tensor, when FP16 holds no number that large.
    """
    exact = np.asarray(amax, np.float64) / fmt.levels
    with np.errstate(over="ignore"):
        scale = exact.astype(np.float16)
        scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    if not np.isfinite(scale).all():
        raise ExportError(
            f"{name} is too large for INT8",
            got=f"values up to {np.max(amax):.3g}",
            expected=f"at most {fmt.levels * FP16_MAX:.3g}: scales are FP16 numbers",
            hint="such values are seldom meant: check the weights; or export without --int8 or --fp8",
        )
    return np.maximum(scale, np.float16(6e-8)).astype(np.float32)


def to_format(
    values: NDArray[np.floating], scale: NDArray[np.float32], fmt: Format
) -> NDArray[Any]:
    """values / scale, rounded to even and saturated, as QuantizeLinear does."""
    scaled = values / scale
    if fmt.name == "int8":
        return np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return np.clip(scaled, -448, 448).astype(fmt.dtype)


def quantize_weight(
    weight: NDArray[np.float32], fmt: Format, *, clips: tuple[float, ...] = CLIPS,
    name: str = "a weight",
) -> tuple[NDArray[Any], NDArray[np.float32]]:  # fmt: skip
    """weight (K,N) -> (8-bit (K,N), scale (N,)). FP8's grid is finer near zero: it is not clipped."""
    amax = np.abs(weight).max(axis=0)
    best = scale_of(amax, fmt, name=name)
    if fmt.name == "int8" and len(clips) > 1:
        step = max(1, _CHUNK // weight.shape[0])
        for start in range(0, weight.shape[1], step):
            part = slice(start, start + step)
            best[part] = _best_scale(weight[:, part], amax[part], fmt, clips)
    return to_format(weight, best, fmt), best


def _best_scale(
    weight: NDArray[np.float32], amax: NDArray[np.float32], fmt: Format, clips: tuple[float, ...]
) -> NDArray[np.float32]:
    scales = [scale_of(amax * clip, fmt) for clip in clips]
    errors = [
        np.square(to_format(weight, s, fmt).astype(np.float32) * s - weight).sum(axis=0)
        for s in scales
    ]
    chosen = np.argmin(errors, axis=0)  # (N,); the unclipped one on a tie
    return np.choose(chosen, scales).astype(np.float32)
