"""Estimate of the memory of a training step, without a GPU.

One step, forward and backward, runs on fake tensors: every operation of the real step is dispatched
without computation, and the allocated bytes are tracked. Optimizer moments and the CUDA context are
added by rule.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from save_deploy.config import AUDIO_DIM, SaveConfig
from save_deploy.model.save import SaveModel
from save_deploy.training.options import Savings
from save_deploy.training.parameters import cast_frozen, nothing_to_train, trainable_parameters
from save_deploy.training.step import TrainStep

GIB = 2**30
CONTEXT_BYTES = int(0.6 * GIB)  # CUDA context and library handles
FRAGMENTATION = 0.05  # share of the peak that the allocator loses to fragmentation
CARD_BYTES = int(24e9)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one training step on one device."""

    frozen: int
    trained: int
    gradients: int
    moments: int
    activations: int  # peak of a step beyond weights and gradients
    reserve: int

    @property
    def total(self) -> int:
        parts = (self.frozen, self.trained, self.gradients, self.moments)
        return sum(parts) + self.activations + self.reserve


def estimate_training(
    config: SaveConfig, savings: Savings, *, micro_batch: int, freeze_sam: bool
) -> MemoryEstimate:
    """Estimate the peak of one micro-batch.

    Clipping needs all gradients at once, so all are counted.
    """
    with torch.device("meta"):
        model = SaveModel(config)
    chosen = list(trainable_parameters(model, freeze_sam=freeze_sam))
    if not chosen:
        raise nothing_to_train(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialize(model)
        if savings.amp and freeze_sam:
            cast_frozen(model)
        weights = dict(model.named_parameters())
        trained = sum(_size(weights[name]) for name in chosen)
        frozen = sum(map(_size, weights.values())) - trained
        step = TrainStep(model, savings=savings)
        side = config.res
        inputs = (
            torch.empty(micro_batch, side, side, 3, dtype=torch.uint8),
            torch.empty(micro_batch, AUDIO_DIM),
            torch.empty(micro_batch, 1, side, side),
        )
        with LiveBytes() as live:
            for _ in range(2):  # all gradients exist during the second part of an accumulated batch
                step.from_embedding(*inputs).backward()
    state_bytes = {"fp32": 8, "bf16": 4}[savings.moments]
    n_trained = sum(weights[name].numel() for name in chosen)
    beyond = live.peak - trained  # bytes at the peak without the gradients
    tensors = frozen + 2 * trained + state_bytes * n_trained + beyond
    return MemoryEstimate(
        frozen=frozen,
        trained=trained,
        gradients=trained,
        moments=state_bytes * n_trained,
        activations=beyond,
        reserve=CONTEXT_BYTES + int(FRAGMENTATION * tensors),
    )


def with_and_without(
    config: SaveConfig, chosen: Savings, *, micro_batch: int, freeze_sam: bool
) -> list[tuple[str, MemoryEstimate]]:
    """Estimate the step with no savings, with all, and with all except one each."""
    everything = Savings(amp=True, checkpoint_blocks=True, moments="bf16")
    cases = {
        "nothing saved": Savings(),
        "without mixed precision": replace(everything, amp=False),
        "without checkpointing": replace(everything, checkpoint_blocks=False),
        "without bf16 moments": replace(everything, moments="fp32"),
        "all three savings": everything,
    }
    if chosen not in cases.values():
        cases["as requested"] = chosen

    def found(savings: Savings, n: int) -> MemoryEstimate:
        return estimate_training(config, savings, micro_batch=n, freeze_sam=freeze_sam)

    rows = [(name, found(savings, micro_batch)) for name, savings in cases.items()]
    if micro_batch > 1:
        rows.append(("all three, one frame at once (more parts)", found(everything, 1)))
    return rows


class LiveBytes(TorchDispatchMode):
    """Tracks the bytes of live storages created inside it; `peak` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self._known.add(value.untyped_storage()._cdata)  # inputs are counted separately
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._add(value)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.live -= size
        self._known.discard(key)


def _materialize(model: nn.Module) -> None:
    """Replace meta parameters and buffers with fake CPU tensors, keeping requires_grad."""
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                fake = torch.empty(value.shape, dtype=value.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
