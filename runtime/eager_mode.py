"""How the eager model is run: on which device, in which arithmetic, through torch.compile or not.

No torch here: comparisons and benchmarks name modes, runtime/eager.py runs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from save_deploy.errors import SaveDeployError
from save_deploy.runtime.session import GPU_BACKENDS

DEVICES = ("cpu", "cuda")
HALVES = ("fp16", "bf16")


@dataclass(frozen=True)
class EagerMode:
    """tf32: inputs of float32 products are rounded to 10 bits of mantissa (CUDA only). half: "fp16" or
    "bf16" by autocast, the weights stay float32; "": float32. compiled: through torch.compile."""

    device: str = "cpu"
    tf32: bool = False
    half: str = ""
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise SaveDeployError(
                "unknown device of the eager model", got=self.device, expected=", ".join(DEVICES)
            )
        if self.tf32 and self.device != "cuda":
            raise SaveDeployError(
                "TF32 exists on CUDA only", got=self.device, expected="--eager-device cuda"
            )

    @property
    def precision(self) -> str:
        return self.half or "fp32"

    @property
    def name(self) -> str:
        """eager, eager-tf32, eager-fp16, compile, compile-fp16, ..."""
        parts = ["compile" if self.compiled else "eager", self.half, "tf32" if self.tf32 else ""]
        return "-".join(filter(None, parts))

    @property
    def device_text(self) -> str:
        return device_text(self.device, tf32=self.tf32)


def device_text(device: str, *, tf32: bool = False) -> str:
    """As tables show it: TF32 is named either way, since it changes both time and numbers."""
    return device if device == "cpu" else f"{device}, TF32 {'on' if tf32 else 'off'}"


def named_mode(name: str, device: str) -> EagerMode:
    """The mode that EagerMode.name gives this name. Raises SaveDeployError for TF32 on the CPU."""
    base, *rest = name.split("-")
    half = next((part for part in rest if part in HALVES), "")
    return EagerMode(device, tf32="tf32" in rest, half=half, compiled=base == "compile")


MODES = tuple(
    EagerMode("cuda", tf32=tf32, half=half, compiled=compiled).name
    for compiled in (False, True)
    for tf32, half in ((False, ""), (True, ""), (False, "fp16"), (False, "bf16"))
)


def choose_device(asked: str | None, backends: Iterable[str]) -> str:
    """Of the eager model where none was asked for: the device of the fastest backend compared, which
    is the GPU as soon as one of them runs there."""
    return asked or ("cuda" if any(backend in GPU_BACKENDS for backend in backends) else "cpu")
