"""One pass over calibration pairs: histograms of MatMul inputs, in bounded memory.

Per-channel statistics are collected for selected inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from save_deploy.calibration.channels import Channels
from save_deploy.calibration.histogram import Histogram
from save_deploy.files import new_file


class Observer:
    """Hooks that record the inputs of named modules of a float32 model.

    Use it as a context manager around calls of the model. `seen` is the number of pairs processed.
    save() and resume() keep the state over an interruption.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        channels: Sequence[str] = (),
        n_pairs: int = 1,
    ) -> None:
        """Prepare an observer without hooks; __enter__ registers them.

        names: modules whose inputs get a histogram.
        channels: the names among them that also get per-channel statistics.
        n_pairs: see Channels.
        """
        self.histograms = {name: Histogram(name) for name in names}
        self.channels = {name: Channels(name, n_pairs) for name in channels}
        self.seen = 0
        self._n_pairs = n_pairs
        self._modules = {name: model.get_submodule(name) for name in names}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        histogram, channels = self.histograms[name], self.channels.get(name)

        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0].detach().numpy()
            histogram.add(values)
            if channels is not None:
                channels.add(values)

        return add

    def save(self, path: Path, key: str) -> None:
        """Write the state atomically. key: identifies the model and the data of the state."""
        arrays = {
            f"{name}/{part}": array
            for name, histogram in self.histograms.items()
            for part, array in histogram.state().items()
        }
        for name, channels in self.channels.items():
            arrays |= {f"{name}/{part}": array for part, array in channels.state().items()}
        with (
            new_file(path, what="the state of the calibration") as partial,
            partial.open("wb") as file,
        ):
            np.savez(file, key=np.array(key), seen=np.array(self.seen), **arrays)  # type: ignore[arg-type]

    def resume(self, path: Path, key: str) -> bool:
        """Load a saved state, if it fits.

        Returns False, without a change, when it is missing, damaged or of another key.
        """
        try:
            with np.load(path, allow_pickle=False) as saved:
                if str(saved["key"]) != key:
                    return False
                histograms = {
                    name: Histogram.from_state(name, {p: saved[f"{name}/{p}"] for p in old.state()})
                    for name, old in self.histograms.items()
                }
                channels = {
                    name: Channels.from_state(
                        name, self._n_pairs, {p: saved[f"{name}/{p}"] for p in old.state()}
                    )
                    for name, old in self.channels.items()
                }
                seen = saved["seen"]
                if seen.shape or seen.dtype.kind != "i" or seen < 0:
                    return False
        except Exception:  # a damaged archive can raise any exception
            return False
        self.histograms, self.channels, self.seen = histograms, channels, int(seen)
        return True


@torch.inference_mode()
def observe(
    model: nn.Module, observer: Observer, inputs: Iterable[tuple[Tensor, ...]], *,
    on_pair: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Run the model on each input and let the observer record it.

    inputs: one tuple of model inputs per pair, only pairs that the observer has not seen yet.
    on_pair: called after each pair.
    Raises DataError, naming the tensor, when a value is NaN or infinite.
    """
    with observer:
        for args in inputs:
            model(*args)
            observer.seen += 1
            on_pair()
