"""Per-channel statistics and sampled rows of a MatMul input, for smoothing and bias correction."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import DataError

MAX_ROWS = 512  # total over all pairs
PARTS = ("top", "rows", "sum", "counts")


class Channels:
    """Exact per-channel maximum of |x| and sum, and at most MAX_ROWS sampled rows of an input.

    n_pairs: expected number of add() calls. Each call adds the same number of rows, at least one.
        The row indices depend only on the index of the call, so a resumed pass samples the same
        rows.
    """

    def __init__(self, name: str, n_pairs: int) -> None:
        self.name = name
        self.amax = np.zeros(0, np.float32)  # (C,) from the first call on
        self.rows = np.zeros((0, 0), np.float32)  # (R,C)
        self._sum = np.zeros(0)
        self._count = self._calls = 0
        self._take = max(1, MAX_ROWS // n_pairs)
        self._limit = max(MAX_ROWS, n_pairs)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of every channel, float64 (C,)."""
        return self._sum / max(self._count, 1)

    def add(self, values: NDArray[np.float32]) -> None:
        """Add one input, finite float32 (...,C)."""
        flat = values.reshape(-1, values.shape[-1])  # (T,C)
        top = np.maximum(flat.max(axis=0), -flat.min(axis=0))
        if not self._count:
            self.amax, self._sum = np.zeros_like(top), np.zeros(len(top))
            self.rows = np.zeros((0, len(top)), np.float32)
        self.amax = np.maximum(self.amax, top)
        self._sum += flat.sum(axis=0, dtype=np.float64)
        self._count += len(flat)
        if len(self.rows) < self._limit:
            chosen = np.random.default_rng(self._calls).integers(len(flat), size=self._take)
            self.rows = np.concatenate([self.rows, flat[chosen]])
        self._calls += 1

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the state as arrays for an npz file; from_state() reads them."""
        counts = np.array([self._count, self._calls], np.int64)
        parts: list[NDArray[Any]] = [self.amax, self.rows, self._sum, counts]
        return {f"channel_{key}": part for key, part in zip(PARTS, parts, strict=True)}

    @classmethod
    def from_state(cls, name: str, n_pairs: int, state: dict[str, NDArray[Any]]) -> Channels:
        """Create the statistics from the arrays of state().

        Raises DataError when they are not valid.
        """
        top, rows, total, counts = parts = [state[f"channel_{key}"] for key in PARTS]
        fits = top.ndim == 1 and top.shape == total.shape == rows.shape[1:] and counts.shape == (2,)
        types = [part.dtype.name for part in parts] == ["float32", "float32", "float64", "int64"]
        if not (fits and types and counts.min() >= 0 and all(np.isfinite(a).all() for a in parts)):
            raise DataError(
                f"the saved channels of {name} are damaged",
                got=f"{top.shape}, {rows.shape}, {total.shape}",
                expected="one finite number per channel",
                hint="delete the saved state and start the calibration again",
            )
        made = cls(name, n_pairs)
        made.amax, made.rows, made._sum = top.copy(), rows.copy(), total.copy()
        made._count, made._calls = int(counts[0]), int(counts[1])
        return made
