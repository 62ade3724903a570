"""Inputs and outputs of a bundle's graphs, the only definition of their names and shapes."""

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
    """One input or output of a graph: name, numpy dtype, fixed shape, meaning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one graph, the only definition of their names and shapes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check_inputs(self, arrays: Arrays) -> None:
        """Raise DataError unless names, dtypes and shapes match exactly."""
        wanted = {spec.name: spec for spec in self.inputs}
        if set(arrays) != set(wanted):
            raise DataError(
                "wrong input names",
                got=", ".join(sorted(arrays)),
                expected=", ".join(sorted(wanted)),
            )
        for name, spec in wanted.items():
            array = arrays[name]
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array)
            if found != f"{spec.dtype} {spec.shape}":
                raise DataError(
                    f"wrong input {name}",
                    got=str(found),
                    expected=f"{spec.dtype} {spec.shape} ({spec.meaning})",
                )


def model_spec(config: SaveConfig, batch: int = 1) -> GraphSpec:
    """Return the spec of model.onnx: frames and audio embeddings -> mask logits."""
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
    """Return the spec of audio.onnx: one second of audio -> audio embedding."""
    return GraphSpec(
        inputs=(TensorSpec("waveform", "float32", (batch, WINDOW_SAMPLES), "16 kHz mono, -1..1"),),
        outputs=(TensorSpec("audio_embedding", "float32", (batch, AUDIO_DIM), "VGGish features"),),
    )
