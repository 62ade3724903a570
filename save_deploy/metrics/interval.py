"""Bootstrap confidence intervals over videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
N_RESAMPLES = 2000


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the percentile interval of the mean from 2000 resamples with replacement.

    values: one per video, because frames of a video are not independent. A single value gives that
        value as both ends.
    seed: fixed, so that a score has the same interval every time.
    """
    data = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [
        data[rng.integers(data.size, size=(100, data.size))].mean(axis=1)
        for _ in range(N_RESAMPLES // 100)  # 100 per step, so that 5000 videos need only 4 MB
    ]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)
