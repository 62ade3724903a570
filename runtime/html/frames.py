"""Encoding of frames for the viewer (JPEG, run lengths, 16-bit audio), and their statistics."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Mask
from save_deploy.metrics.margin import LEVELS
from save_deploy.metrics.parity import mask_agreement
from save_deploy.metrics.segmentation import frame_iou
from save_deploy.runtime.html.data import ReportFrame

MAX_SIDE = 512  # px of a frame on the page
_QUALITY = 86
_SILENCE = 1e-10  # mean square below which a sound has no level


@dataclass(frozen=True)
class Compared:
    """Statistics of one row's mask on one frame.

    agreement: IoU with the reference's mask (1 when both are empty).
    iou: IoU with truth, as AVSBench counts it.
    on, off: number of pixels flipped to foreground and to background.
    """

    agreement: float
    iou: float | None
    on: int
    off: int


def compared(frame: ReportFrame) -> dict[str, Compared]:
    """Return the statistics of every row's mask, by row name, at the size of the masks."""
    reference, found = frame.reference_mask, {}
    for name, mask in frame.masks.items():
        found[name] = Compared(
            agreement=mask_agreement(mask, reference),
            iou=truth_iou(mask, frame.truth),
            on=int((mask & ~reference).sum()),
            off=int((~mask & reference).sum()),
        )
    return found


def truth_iou(mask: Mask, truth: Mask | None) -> float | None:
    return None if truth is None else float(frame_iou(mask[None], truth[None])[0])


def worst_first(frames: tuple[ReportFrame, ...]) -> list[ReportFrame]:
    """Sort frames by the lowest agreement of any row, then by flipped pixels, then as given."""

    def key(frame: ReportFrame) -> tuple[float, int]:
        rows = compared(frame).values()
        return (
            min((c.agreement for c in rows), default=1.0),
            -max((c.on + c.off for c in rows), default=0),
        )

    return sorted(frames, key=key)


def display_size(size: tuple[int, ...]) -> tuple[int, int]:
    """Return (height, width) on the page: unchanged, or shrunk to MAX_SIDE."""
    height, width = size[:2]
    shrink = max(height, width, MAX_SIDE) / MAX_SIDE
    return max(1, round(height / shrink)), max(1, round(width / shrink))


def entry(frame: ReportFrame) -> dict[str, Any]:
    """Return one frame for the viewer."""
    size = frame.reference.shape
    height, width = display_size(size)
    small = lambda mask: _shrunk(mask, height, width)
    numbers = compared(frame)
    reference = frame.reference_mask
    return {
        "name": frame.name,
        "dataset": frame.dataset,
        "height": height,
        "width": width,
        "full": [size[0], size[1]],
        "jpeg": _jpeg(frame.frame, height, width),
        "truth": None if frame.truth is None else runs(small(frame.truth)),
        "reference": runs(small(reference)),
        "reference_iou": truth_iou(reference, frame.truth),
        "near": None if frame.reference.dtype == bool else runs(small(near(frame.reference))),
        "rows": {
            name: {
                "mask": runs(small(mask)),
                "flips": runs(_flips(reference, mask, height, width)),
                **_dict(numbers[name]),
            }
            for name, mask in frame.masks.items()
        },
        "sound": _sound(frame.waveform),
        "level": level_dbfs(frame.waveform),
    }


def summary(frame: ReportFrame) -> dict[str, Any]:
    """Return the statistics of a frame without its images."""
    return {
        "name": frame.name,
        "dataset": frame.dataset,
        "reference_iou": truth_iou(frame.reference_mask, frame.truth),
        "rows": {name: _dict(c) for name, c in compared(frame).items()},
    }


def _dict(found: Compared) -> dict[str, Any]:
    return {"agreement": found.agreement, "iou": found.iou, "on": found.on, "off": found.off}


def near(logits: NDArray[np.floating] | Mask) -> NDArray[np.uint8]:
    """Return the level of |logit|: 3 below the first level, 2, 1 below the last, else 0."""
    size = np.abs(logits)
    return np.sum([size < level for level in LEVELS], axis=0).astype(np.uint8)


def runs(values: NDArray[Any]) -> str:
    """Encode values 0..3 (H,W) as base64 of run lengths in reading order.

    Each run is the varint length << 2 | value.
    """
    flat = np.ascontiguousarray(values).astype(np.uint8).ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size))
    packed = bytearray()
    for length, value in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        number = length << 2 | value
        while number > 127:
            packed.append(number & 127 | 128)
            number >>= 7
        packed.append(number)
    return base64.b64encode(packed).decode()


def _shrunk(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize values (H,W) by nearest neighbor; return the array itself when the size is right."""
    if values.shape == (height, width):
        return values
    ys = (np.arange(height) + 0.5) * values.shape[0] / height
    xs = (np.arange(width) + 0.5) * values.shape[1] / width
    return values[ys.astype(int)[:, None], xs.astype(int)[None]]


def _flips(reference: Mask, mask: Mask, height: int, width: int) -> NDArray[np.uint8]:
    """Return (height,width): 1 flipped on, 2 flipped off. A single flipped pixel stays visible."""
    shown = np.zeros((height, width), np.uint8)
    for value, where in ((2, reference & ~mask), (1, mask & ~reference)):
        ys, xs = np.nonzero(where)
        shown[ys * height // mask.shape[0], xs * width // mask.shape[1]] = value
    return shown


def _jpeg(frame: NDArray[np.uint8], height: int, width: int) -> str:
    picture = Image.fromarray(frame)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=_QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _sound(waveform: Waveform) -> str:
    """Encode 16-bit little-endian samples as base64, "" without sound."""
    return base64.b64encode(
        np.rint(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()
    ).decode()


def level_dbfs(waveform: Waveform) -> float | None:
    """Return the root mean square in dB below full scale, None for silence and without sound."""
    power = float(np.square(waveform, dtype=np.float64).mean()) if waveform.size else 0.0
    return float(10 * np.log10(power)) if power > _SILENCE else None
