"""Frames and sound in, masks out: `load("bundle/")(frame, waveform) -> mask`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from save_deploy.config import SaveConfig
from save_deploy.data.audio import Waveform, second
from save_deploy.data.transforms import Frame, Mask, resize_frame
from save_deploy.errors import BackendError, DataError
from save_deploy.manifest import Manifest
from save_deploy.runtime.session import OrtSession, Session, as_batch

BACKENDS = ("onnxruntime",)


class SavePipeline:
    """The two sessions of a model: the audio side runs once per second, the model once per frame."""

    def __init__(
        self, *, config: SaveConfig, precision: str, audio: Session, model: Session
    ) -> None:
        self.config, self.precision, self.audio, self.model = config, precision, audio, model

    @property
    def backend(self) -> str:
        return self.model.backend

    def embed(self, waveform: Waveform) -> NDArray[np.float32]:
        """One second of sound: float32 (n,) 16 kHz mono in [-1,1] -> audio_embedding (1,128).

        A shorter sound is completed with silence, a longer one is cut to its first second.
        """
        if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
            raise DataError(
                "wrong waveform",
                got=f"{waveform.dtype} {waveform.shape}",
                expected="float (n,), 16 kHz mono in [-1,1]",
            )
        window = second(waveform.astype(np.float32, copy=False))
        return self.audio.infer({"waveform": as_batch(window)})["audio_embedding"]

    def logits(self, frame: Frame, audio_embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """frame uint8 (H,W,3) RGB -> mask_logits float32 (S,S) at network size."""
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise DataError(
                "wrong frame", got=f"{frame.dtype} {frame.shape}", expected="uint8 (H,W,3), RGB"
            )
        image = as_batch(resize_frame(frame, self.config.res))
        outputs = self.model.infer({"image": image, "audio_embedding": audio_embedding})
        return outputs["mask_logits"][0, 0]

    def __call__(self, frame: Frame, waveform: Waveform) -> Mask:
        """frame uint8 (H,W,3) RGB and its second of sound -> mask bool (H,W), True = sounding."""
        logits = self.logits(frame, self.embed(waveform))
        height, width = frame.shape[:2]
        resized = Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized) > 0

    def close(self) -> None:
        self.audio.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    bundle: str | Path,
    *,
    backend: str = "onnxruntime",
    threads: int | None = None,
    verify: bool = True,
) -> SavePipeline:
    """Open a bundle. verify compares every file with its sha256 first.

    Raises BundleError (incomplete, altered), BackendError (cannot run here).
    """
    folder = Path(bundle)
    manifest = Manifest.read(folder)
    if verify:
        manifest.verify(folder)
    if backend not in BACKENDS:
        raise BackendError("unknown backend", got=backend, expected=", ".join(BACKENDS))
    return SavePipeline(
        config=manifest.config,
        precision=manifest.precision["precision"],
        audio=OrtSession(folder / "audio.onnx", manifest.audio, threads=threads),
        model=OrtSession(
            folder / "model.onnx",
            manifest.model,
            threads=threads,
            low_memory="model.onnx.data" in manifest.files,  # gigabytes: one copy is enough
        ),
    )
