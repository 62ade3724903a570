"""The eager PyTorch model behind the session interface: the reference of every comparison.

The CUDA code was tested only with replacements of the device, not on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from save_deploy.bundle import Arrays, GraphSpec, audio_spec, model_spec
from save_deploy.checkpoints import load_model
from save_deploy.data.log_mel import log_mel_examples
from save_deploy.errors import BackendError
from save_deploy.machine import read_nvidia
from save_deploy.model.save import SaveModel
from save_deploy.runtime.eager_mode import EagerMode
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import default_threads

Prepare = Callable[[Arrays], tuple[Tensor, ...]]
# torch's device of each mode
PLACE = {"cpu": "cpu", "cuda": "cuda"}
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class EagerSession:
    """A function of tensors as a session, on the device of its weights.

    device_ms: time of the last call between two CUDA events around the function, without copies
        from and to the host. None on the CPU.
    """

    def __init__(
        self,
        spec: GraphSpec,
        run: Callable[..., Tensor],
        mode: EagerMode = EagerMode(),
        *,
        prepare: Prepare | None = None,
    ) -> None:
        """Wrap a function of tensors.

        prepare: converts arrays of the spec to the host tensors that `run` takes; default: no
            conversion.
        """
        self.backend, self.spec, self.mode = "eager", spec, mode
        self.device_ms: float | None = None
        self._run, self._prepare = run, prepare or self._as_given

    def infer(self, inputs: Arrays) -> Arrays:
        """Run host arrays and return host arrays.

        On CUDA the call returns when the device is finished.
        """
        self.spec.check_inputs(inputs)
        with torch.inference_mode(), arithmetic(self.mode):
            given = [tensor.to(PLACE[self.mode.device]) for tensor in self._prepare(inputs)]
            return {self.spec.outputs[0].name: to_host(self._timed(given))}

    def _as_given(self, inputs: Arrays) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(inputs[spec.name]) for spec in self.spec.inputs)

    def _timed(self, given: list[Tensor]) -> Tensor:
        if self.mode.device != "cuda":
            return self._run(*given)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        output = self._run(*given)
        end.record()
        torch.cuda.synchronize()  # the host is far ahead of the device
        self.device_ms = float(begin.elapsed_time(end))
        return output

    def close(self) -> None:
        """Do nothing, because the caller owns the model."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def to_host(output: Tensor) -> NDArray[np.float32]:
    return output.float().cpu().numpy()


@contextlib.contextmanager
def arithmetic(mode: EagerMode) -> Iterator[None]:
    """Set TF32 and autocast of the mode for the block; the previous settings are restored."""
    # torch.compile still reads these and not the names that replace them
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = mode.tf32
    cast: Any = contextlib.nullcontext()
    if mode.half:
        cast = torch.autocast(mode.device, dtype=_HALF[mode.half])
    try:
        with cast:
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def eager_pipeline(
    model: SaveModel, *, batch: int = 1, further: int = 1, mode: EagerMode = EagerMode()
) -> SavePipeline:
    """Return a model as a pipeline of `batch` frames, with the log-mel of data/log_mel.py.

    further: frames of a larger call where there are as many, 1 for none.
    The weights are already on the mode's device. The log-mel is computed on the host.
    """
    embed = model.audio_encoder

    def as_log_mel(inputs: Arrays) -> tuple[Tensor, ...]:
        log_mel = np.stack([log_mel_examples(w)[0] for w in inputs["waveform"]])  # (B,1,96,64)
        return (torch.from_numpy(log_mel).to(model.pixel_mean.dtype),)

    def frames(n: int) -> EagerSession:
        return EagerSession(model_spec(model.config, n), model.forward_embedding, mode)

    return SavePipeline(
        config=model.config,
        precision=mode.precision,
        audio=EagerSession(audio_spec(), embed, mode, prepare=as_log_mel),
        model=frames(batch),
        further={further: frames(further)} if further > batch else {},
    )


def open_eager(
    checkpoint: Path, sam: Path | None, *, res: int, batch: int,
    mode: EagerMode = EagerMode(),
    threads: int | None = None,
) -> SavePipeline:  # fmt: skip
    """Open the eager model of a checkpoint on the mode's device.

    threads: default as for sessions. Raises BackendError when torch does not have the device.
    """
    require_device(mode.device)
    torch.set_num_threads(threads or default_threads())
    model = load_model(checkpoint, res=res, sam=sam).to(PLACE[mode.device])
    if mode.compiled:
        model.forward_embedding = torch.compile(model.forward_embedding)  # type: ignore[method-assign]
    return eager_pipeline(model, batch=batch, mode=mode)


def require_device(device: str) -> None:
    """Raise BackendError, naming what is missing, when torch cannot run on the device."""
    if device != "cuda" or torch.cuda.is_available():
        return
    nvidia = read_nvidia()
    built = torch.version.cuda
    raise BackendError(
        "the eager model cannot run on CUDA here",
        got=nvidia.problem or f"torch {torch.__version__}, " + (
            f"built for CUDA {built}; the driver serves CUDA {nvidia.cuda}"
            if built else "built without CUDA"
        ),
        expected="an NVIDIA GPU, its driver, and a torch built for CUDA",
        hint="--eager-device cpu",
    )  # fmt: skip
