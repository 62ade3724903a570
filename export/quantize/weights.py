"""Quantization of constant matrices to INT8 or FP8 with one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from save_deploy.bundle import SMALL_WEIGHT
from save_deploy.errors import ExportError
from save_deploy.export.fp16 import FP16_MAX

# Clip thresholds to try, as shares of a channel's largest weight; least squared error decides.
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8)
_CHUNK = 1 << 24  # values quantized per step


@dataclass(frozen=True)
class Format:
    """A quantized format. levels: its largest value."""

    name: str
    levels: float
    dtype: np.dtype


FORMATS = {
    "int8": Format("int8", 127.0, np.dtype(np.int8)),
    "fp8": Format("fp8", 448.0, np.dtype(ml_dtypes.float8_e4m3fn)),
}


def weight_format(fmt: str, bits: int = 8) -> Format:
    """Return the format of weights. bits: 7 limits INT8 values to -64..64.

    CPUs without an INT8 dot product add two products of an activation (0..255) and a weight in 16
    bits (vpmaddubsw). 2 * 255 * 64 = 32,640 fits; 2 * 255 * 127 = 64,770 saturates.
    """
    chosen = FORMATS[fmt]
    return replace(chosen, levels=float(SMALL_WEIGHT)) if (fmt, bits) == ("int8", 7) else chosen


def largest_weight(model: ir.Model) -> int:
    """Return the largest absolute INT8 value of the constant matrices of a graph, 0 without one."""
    arrays = (
        value.const_value.numpy()
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype == ir.DataType.INT8
        and len(value.const_value.shape) > 1
    )
    return max((int(np.abs(array.astype(np.int16)).max()) for array in arrays), default=0)


def scale_of(
    amax: NDArray[np.floating] | float, fmt: Format, *, name: str = "a tensor"
) -> NDArray[np.float32]:
    """Return amax / levels, rounded up to a value that FP16 represents exactly.

    The quantized values are then the same for FP32 and FP16 float parts, and the largest value
    never overflows. Zero gives the smallest FP16 value.
    Raises ExportError, with `name` of the tensor, when the scale exceeds FP16.
    """
    exact = np.asarray(amax, np.float64) / fmt.levels
    with np.errstate(over="ignore"):
        scale = exact.astype(np.float16)
        scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    if not np.isfinite(scale).all():
        raise ExportError(
            f"{name} is too large for INT8",
            got=f"values up to {np.max(amax):.3g}",
            expected=f"at most {fmt.levels * FP16_MAX:.3g}, so that scales fit FP16",
            hint="check the weights, or export without --int8 and --fp8",
        )
    return np.maximum(scale, np.float16(6e-8)).astype(np.float32)


def to_format(
    values: NDArray[np.floating], scale: NDArray[np.float32], fmt: Format
) -> NDArray[Any]:
    """Return values / scale, rounded half to even and saturated, as QuantizeLinear does."""
    scaled = values / scale
    if fmt.name == "int8":
        return np.clip(np.rint(scaled), -fmt.levels, fmt.levels).astype(np.int8)
    return np.clip(scaled, -448, 448).astype(fmt.dtype)


def quantize_weight(
    weight: NDArray[np.float32], fmt: Format, *, clips: tuple[float, ...] = CLIPS,
    name: str = "a weight",
) -> tuple[NDArray[Any], NDArray[np.float32]]:  # fmt: skip
    """Quantize weight (K,N) and return 8-bit values (K,N) and scales (N,).

    INT8 uses the clip threshold of least squared error. FP8 is not clipped because its grid is
    finer near zero.
    """
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
    chosen = np.argmin(errors, axis=0)  # (N,); a tie selects the unclipped scale
    return np.choose(chosen, scales).astype(np.float32)
