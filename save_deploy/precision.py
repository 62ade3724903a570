"""Precision of a graph: the type of its floats, and the format of its quantized MatMuls."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Self

from save_deploy.errors import SaveDeployError

FLOATS = ("fp32", "fp16", "bf16")
FORMATS = ("int8", "fp8")


@dataclass(frozen=True)
class Precision:
    """Precision of a graph.

    floats: fp32, fp16 or bf16.
    quantized: int8, fp8, or None.
    As text: fp32, fp16, bf16, int8, int8_fp16, fp8, fp8_fp16 (a format without suffix has FP32
        floats).
    """

    floats: str = "fp32"
    quantized: str | None = None

    def __post_init__(self) -> None:
        if self.floats not in FLOATS or self.quantized not in (None, *FORMATS):
            raise SaveDeployError(
                "unknown precision",
                got=f"{self.floats}, {self.quantized}",
                expected=f"{' or '.join(FLOATS)}, with {' or '.join(FORMATS)} or neither",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a text. Raises SaveDeployError with similar valid ones."""
        known = {str(cls(f, q)): (f, q) for q in (None, *FORMATS) for f in FLOATS}
        if text not in known:
            near = difflib.get_close_matches(str(text), known, cutoff=0.5) or known
            raise SaveDeployError("unknown precision", got=str(text), expected=", ".join(near))
        return cls(*known[text])

    def __str__(self) -> str:
        if self.quantized is None:
            return self.floats
        return self.quantized if self.floats == "fp32" else f"{self.quantized}_{self.floats}"
