"""Trained parameters, precision of the frozen ones, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from save_deploy.config import SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.model.save import SaveModel
from save_deploy.systems import SYSTEMS, group_of, is_unused
from save_deploy.training.options import TrainConfig


def trainable_parameters(model: SaveModel, *, freeze_sam: bool) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, and set requires_grad of all.

    freeze_sam: train only the groups of the model's system.
    Hypernetworks and prompts that the single mask does not use get no gradient. They are left out,
    so that weight decay does not change them.
    """
    chosen = {}
    trains = SYSTEMS[model.config.system].trains
    for name, parameter in model.named_parameters():
        frozen = freeze_sam and group_of(name, model.config.depth) not in trains
        parameter.requires_grad_(not (is_unused(name) or frozen))
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


def nothing_to_train(config: SaveConfig) -> SaveDeployError:
    """Return the error for a system without trained parts."""
    return SaveDeployError(
        "nothing to train",
        got=f"system {config.system}, which trains no parameter",
        expected="another system",
        hint="save-eval scores this system without training",
    )


def cast_frozen(model: SaveModel) -> None:
    """Convert frozen weights of the image encoder to bfloat16 in place. They are not saved.

    VGGish stays float32, because an adapter-only checkpoint contains it.
    """
    for parameter in model.image_encoder.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def build_optimizer(learned: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Return AdamW without decay of biases, norms and other vectors."""
    parameters = list(learned)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.savings.moments == "bf16":
        return AdamWBf16(groups, lr=config.lr)
    return AdamW(groups, lr=config.lr, fused=True)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of the model whose weights follow it as an exponential moving average."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


class AdamWBf16(Optimizer):
    """AdamW with both moments stored in bfloat16: 4 bytes per parameter instead of 8.

    The moments are rounded stochastically. Rounding to nearest would freeze the second moment: a
    step changes it by 1/1000 of the difference, less than the 1/256 between neighboring bfloat16
    values.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.float(), group)

    def _update(self, parameter: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        mean = state["exp_avg"].float().lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        state["exp_avg"].copy_(stochastic_bf16(mean))
        state["exp_avg_sq"].copy_(stochastic_bf16(square))
        size = group["lr"] / (1 - beta1 ** state["step"])
        root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, root, value=-size)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state with moments in bfloat16. torch would cast them to the parameter's type."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].to(torch.bfloat16)


def stochastic_bf16(x: Tensor) -> Tensor:
    """Round float32 to bfloat16, up or down with the probability that keeps the expectation."""
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)  # the 16 bits that bfloat16 drops
    kept = bits.add_(noise).bitwise_and_(-(1 << 16))
    return kept.view(torch.float32).to(torch.bfloat16)
