"""Files from which a training run is resumed: last.pt, and hearing.pt of its sound warm-up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from save_deploy.data import compose
from save_deploy.errors import SaveDeployError
from save_deploy.files import new_file
from save_deploy.training.batches import generated
from save_deploy.training.options import TrainConfig

# Options of a run that a resumed one may have otherwise: they change no step that both have
MAY_CHANGE = (
    "steps", "device", "deterministic", "val_data", "n_val_clips", "eval_every", "save_every", "half",
    "skip_bad",
)  # fmt: skip


@dataclass(frozen=True)
class RunState:
    """What a run changes. average: averaged model, or None. sam: which frozen SAM it is trained on."""

    model: nn.Module
    aux: nn.Module | None
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    sam: str = ""


def write_state(
    path: Path,
    run: RunState,
    *,
    config: TrainConfig,
    step: int,
    best: float,
) -> None:
    """Write the state atomically, without frozen weights, which are read from SAM again.

    Raises OutputError.
    """
    state = {
        "model": _own_weights(run.model, freeze_sam=config.freeze_sam),
        "aux": run.aux.state_dict() if run.aux else {},
        "optimizer": run.optimizer.state_dict(),
        "average": run.average.state_dict() if run.average else {},
        "train_config": json.dumps(dataclasses.asdict(config)),
        "step": step,
        "best": best,
        "sam": run.sam,
        "clips": compose.VERSION,
    }
    with new_file(path, what="the state of the run") as partial:
        torch.save(state, partial)


def read_state(
    path: Path,
    run: RunState,
    *,
    config: TrainConfig,
) -> tuple[int, float]:
    """Load the state into the run; return the next step and the best M_J.

    Raises SaveDeployError when the state is of another model, another frozen SAM or other options than
    those in MAY_CHANGE.
    """
    try:
        state = _loaded(path)
        if other := _other_options(state, config):
            raise _other_run(path, other)
        if state.get("sam", run.sam) != run.sam:  # states of before have none
            raise _other_run(path, "it was trained on the weights of another SAM")
        if any(map(generated, config.data)) and state.get("clips", 1) != compose.VERSION:
            raise _other_run(path, "its generated clips are those of an earlier version")
        run.model.load_state_dict(state["model"], strict=not config.freeze_sam)
        if run.aux is not None:
            run.aux.load_state_dict(state["aux"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.average is not None:
            run.average.load_state_dict(state["average"])
        return int(state["step"]), float(state["best"])
    except _UNFIT as error:
        raise _other_run(path, str(error)) from error


class Part(Protocol):
    """What has a state: a module, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def write_parts(
    path: Path, parts: Mapping[str, Part], options: Mapping[str, float], step: int
) -> None:
    """Write the states of the parts atomically, with the options and the next step.

    Raises OutputError.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    with new_file(path, what="the state of the sound warm-up") as partial:
        torch.save({"parts": states, "options": dict(options), "step": step}, partial)


def read_parts(path: Path, parts: Mapping[str, Part], options: Mapping[str, float]) -> int:
    """Load the states into the parts and return the next step.

    Raises SaveDeployError for a file of other parts or other options.
    """
    try:
        state = _loaded(path)
        if state["options"] != options:
            raise _other_run(path, f"{state['options']} instead of {dict(options)}")
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        return int(state["step"])
    except _UNFIT as error:
        raise _other_run(path, str(error)) from error


_UNFIT = (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError)


def _loaded(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def _other_run(path: Path, got: str) -> SaveDeployError:
    return SaveDeployError(
        "the run cannot be resumed with these options",
        got=f"{path}: {got.splitlines()[0] if got else 'it ends early'}",
        expected="the model and options it was started with",
        hint="give the same options, or train on in another folder: --init best.safetensors -o DIR",
    )


def _other_options(state: Mapping[str, Any], config: TrainConfig) -> str:
    """Return the options of a state that are others now, as text; "" for none."""
    was, now = json.loads(state["train_config"]), json.loads(json.dumps(dataclasses.asdict(config)))
    other = [k for k in now if k in was and k not in MAY_CHANGE and was[k] != now[k]]
    return ", ".join(f"{k} was {was[k]} and is {now[k]}" for k in other)


def _own_weights(model: nn.Module, *, freeze_sam: bool) -> dict[str, Tensor]:
    state = model.state_dict()
    if not freeze_sam:
        return state
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    return {name: value for name, value in state.items() if name in learned}
