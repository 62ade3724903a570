"""Bootstrap confidence intervals over videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
N_RESAMPLES = 2000


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the mean: values are redrawn with replacement 2000 times.

    values: one per video (frames of a video are not independent). One value gives that value twice.
    Seeded, so that a score prints the same interval every time.
    """
    data = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [
        data[rng.integers(data.size, size=(100, data.size))].mean(axis=1)
        for _ in range(N_RESAMPLES // 100)  # a hundred at a time: 5000 videos stay within 4 MB
    ]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)
