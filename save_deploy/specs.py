"""What goes into and comes out of every graph: built once from SaveConfig, read by all.

Exporter, sessions, manifest and tests use these; no other place names an input or a shape.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.config import AUDIO_DIM, SaveConfig
from save_deploy.errors import DataError

WINDOW_SAMPLES = 16_000  # one second at 16 kHz
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, numpy dtype, fixed shape, what it holds."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str


@dataclass(frozen=True)
class GraphSpec:
    """The interface of one graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GraphSpec:
        make = lambda rows: tuple(TensorSpec(**{**r, "shape": tuple(r["shape"])}) for r in rows)
        return cls(inputs=make(values["inputs"]), outputs=make(values["outputs"]))

    def check_inputs(self, arrays: Arrays) -> None:
        """Raise DataError unless names, dtypes and shapes are exactly these."""
        wanted = {spec.name: spec for spec in self.inputs}
        if set(arrays) != set(wanted):
            raise DataError(
                "wrong input names",
                got=", ".join(sorted(arrays)),
                expected=", ".join(sorted(wanted)),
            )
        for name, spec in wanted.items():
            array = arrays[name]
            if array.dtype != np.dtype(spec.dtype) or array.shape != spec.shape:
                raise DataError(
                    f"wrong input {name}",
                    got=f"{array.dtype} {tuple(array.shape)}",
                    expected=f"{spec.dtype} {spec.shape} ({spec.meaning})",
                )


def model_spec(config: SaveConfig, batch: int = 1) -> GraphSpec:
    """model.onnx: one frame and the embedding of its second of sound -> mask logits."""
    side = config.res
    return GraphSpec(
        inputs=(
            TensorSpec(
                "image", "uint8", (batch, side, side, 3), "RGB, 0..255, resized to a square"
            ),
            TensorSpec("audio_embedding", "float32", (batch, AUDIO_DIM), "output of audio.onnx"),
        ),
        outputs=(
            TensorSpec("mask_logits", "float32", (batch, 1, side, side), "sounding where > 0"),
        ),
    )


def audio_spec(batch: int = 1) -> GraphSpec:
    """audio.onnx: one second of sound -> its embedding."""
    return GraphSpec(
        inputs=(TensorSpec("waveform", "float32", (batch, WINDOW_SAMPLES), "16 kHz mono, -1..1"),),
        outputs=(TensorSpec("audio_embedding", "float32", (batch, AUDIO_DIM), "VGGish features"),),
    )
