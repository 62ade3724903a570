"""What a process of its own opens in tests: imported there, so it imports little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Opener:
    """A model that measures its own time, too."""

    def __call__(self) -> Any:
        return Counted()


class Counted:
    device_ms = 0.25

    def __call__(self) -> Any:
        return np.zeros(1)
