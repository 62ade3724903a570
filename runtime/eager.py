"""The eager PyTorch model behind the session interface: the reference of every comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from save_deploy.bundle import Arrays, GraphSpec, audio_spec, model_spec
from save_deploy.checkpoints import load_model
from save_deploy.data.log_mel import log_mel_examples
from save_deploy.model.save import SaveModel
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import default_threads


class EagerSession:
    """A function of tensors as a session."""

    def __init__(self, spec: GraphSpec, run: Callable[..., Tensor]) -> None:
        self.backend, self.spec, self._run = "eager", spec, run

    def infer(self, inputs: Arrays) -> Arrays:
        self.spec.check_inputs(inputs)
        with torch.inference_mode():
            output = self._run(*(torch.from_numpy(inputs[spec.name]) for spec in self.spec.inputs))
        return {self.spec.outputs[0].name: output.float().numpy()}

    def close(self) -> None:
        """Nothing to release: the caller owns the model."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def eager_pipeline(model: SaveModel, *, batch: int = 1) -> SavePipeline:
    """The model as trained, with the log-mel of data/log_mel.py, as a pipeline of `batch` frames."""

    def embed(waveform: Tensor) -> Tensor:
        log_mel = np.stack([log_mel_examples(w)[0] for w in waveform.numpy()])  # (B,1,96,64)
        return model.audio_encoder(torch.from_numpy(log_mel).to(model.pixel_mean.dtype))

    return SavePipeline(
        config=model.config,
        precision="fp32",
        audio=EagerSession(audio_spec(), embed),
        model=EagerSession(model_spec(model.config, batch), model.forward_embedding),
    )


def open_eager(
    checkpoint: Path, sam: Path | None, *, res: int, batch: int, compiled: bool = False,
    threads: int | None = None,
) -> SavePipeline:  # fmt: skip
    """The eager model of a checkpoint, with as many threads as sessions take. compiled: through
    torch.compile."""
    torch.set_num_threads(threads or default_threads())
    model = load_model(checkpoint, res=res, sam=sam)
    if compiled:
        model.forward_embedding = torch.compile(model.forward_embedding)  # type: ignore[method-assign]
    return eager_pipeline(model, batch=batch)
