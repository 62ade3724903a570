"""How the eager model is run: device, arithmetic, and whether torch.compile is used.

This module does not import torch: comparisons and benchmarks name modes, runtime/eager.py runs
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from save_deploy.errors import SaveDeployError
from save_deploy.fields import check_word
from save_deploy.runtime.session import GPU_BACKENDS

DEVICES = ("cpu", "cuda")
HALVES = ("fp16", "bf16")


@dataclass(frozen=True)
class EagerMode:
    """Mode of the eager model.

    tf32: round inputs of float32 products to 10 bits of mantissa (CUDA only).
    half: "fp16" or "bf16" by autocast with float32 weights, "" for float32.
    compiled: use torch.compile.
    """

    device: str = "cpu"
    tf32: bool = False
    half: str = ""
    compiled: bool = False

    def __post_init__(self) -> None:
        check_word("device of the eager model", self.device, DEVICES)
        if self.tf32 and self.device != "cuda":
            raise SaveDeployError(
                "TF32 exists on CUDA only", got=self.device, expected="--eager-device cuda"
            )

    @property
    def precision(self) -> str:
        return self.half or "fp32"

    @property
    def name(self) -> str:
        """Name such as eager, eager-tf32, eager-fp16, compile, compile-fp16."""
        parts = ["compile" if self.compiled else "eager", self.half, "tf32" if self.tf32 else ""]
        return "-".join(filter(None, parts))

    @property
    def device_text(self) -> str:
        return device_text(self.device, tf32=self.tf32)


def device_text(device: str, *, tf32: bool = False) -> str:
    """Return the device for tables.

    TF32 is always named, because it changes both time and values.
    """
    return device if device == "cpu" else f"{device}, TF32 {'on' if tf32 else 'off'}"


def named_mode(name: str, device: str) -> EagerMode:
    """Return the mode with this EagerMode.name. Raises SaveDeployError for TF32 on the CPU."""
    base, *rest = name.split("-")
    half = next((part for part in rest if part in HALVES), "")
    return EagerMode(device, tf32="tf32" in rest, half=half, compiled=base == "compile")


MODES = tuple(
    EagerMode("cuda", tf32=tf32, half=half, compiled=compiled).name
    for compiled in (False, True)
    for tf32, half in ((False, ""), (True, ""), (False, "fp16"), (False, "bf16"))
)


def choose_device(asked: str | None, backends: Iterable[str]) -> str:
    """Return the requested device of the eager model, or that of the fastest backend compared.

    The latter is the GPU when one of the backends runs there.
    """
    return asked or ("cuda" if any(backend in GPU_BACKENDS for backend in backends) else "cpu")
