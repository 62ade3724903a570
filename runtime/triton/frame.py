"""Model save_frame: bytes of a picture, and its sound -> mask as PNG or run lengths."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping

import numpy as np
from PIL import Image

from save_deploy.bundle import Arrays, GraphSpec, TensorSpec
from save_deploy.data.pictures import decode_frame
from save_deploy.data.transforms import Mask
from save_deploy.runtime.result import rle_of
from save_deploy.runtime.triton.python_model import OneAnswer, Request

PICTURE = TensorSpec("picture", "bytes", (1,), "bytes of a PNG or JPEG file")
MASKS = (
    TensorSpec("mask_png", "bytes", (1,), "PNG of the size of the picture, white = sounding"),
    TensorSpec("mask_rle", "bytes", (1,), "JSON of COCO run lengths, uncompressed"),
)
SOUND = TensorSpec("waveform", "float32", (-1,), "16 kHz mono, -1..1; its first second is used")
SPEC = GraphSpec((PICTURE, SOUND), MASKS)


class FrameModel(OneAnswer):
    """Masks one picture per request and computes only the requested outputs."""

    def start(self, arguments: Mapping[str, str]) -> None:
        self.graphs = self.pipeline()

    def answer(self, request: Request) -> Arrays:
        frame = decode_frame(self.content(request, "picture"))
        mask = self.graphs(frame, self.array(request, "waveform"))
        return encoded(mask, request.requested_output_names())


def encoded(mask: Mask, wanted: Collection[str]) -> Arrays:
    """Encode a mask bool (H,W) as the wanted outputs of MASKS."""
    makers = {"mask_png": png_of, "mask_rle": lambda m: json.dumps(rle_of(m)).encode()}
    return {name: np.array([make(mask)], object) for name, make in makers.items() if name in wanted}


def png_of(mask: Mask) -> bytes:
    """Encode a mask bool (H,W) as 1-bit PNG, white = sounding."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(file, "PNG")
    return file.getvalue()


def mask_of(rle: Mapping[str, list[int]]) -> Mask:
    """Decode run lengths of rle_of (runtime/result.py) to bool (H,W)."""
    runs = np.asarray(rle["counts"])
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    return flat.reshape(rle["size"], order="F")
