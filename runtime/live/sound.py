"""The sound of a live source on the clock of its pictures: the last seconds of it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import WINDOW_SAMPLES
from save_deploy.data.audio import Waveform
from save_deploy.data.film_sound import GAP_S, mono_of
from save_deploy.data.log_mel import SAMPLE_RATE_HZ

KEPT_S = 4.0  # of sound heard; masks never ask for what is older
_HELD_S = 20.0  # of sound for a file, where its writer is slower than the source
_MOST_HELD = 10_000  # pieces
Samples = NDArray[np.float32]


class Ears:
    """A ring of 16 kHz mono sound, each sample at its time. One thread adds, another hears."""

    def __init__(self) -> None:
        self._kept = round(KEPT_S * SAMPLE_RATE_HZ)
        self._ring = np.zeros(self._kept, np.float32)
        self._end: int | None = None  # index of the sample after the last, counted from time 0
        self._lock = threading.Lock()

    def add(self, samples: Waveform, time_s: float) -> None:
        """samples (n,) whose first is heard at time_s. Gaps are silent; of what overlaps the first
        is heard, and a step back in time that is no overlap starts anew."""
        with self._lock:
            at = round(time_s * SAMPLE_RATE_HZ)
            if self._end is None or abs(at - self._end) > self._kept:
                self._ring[:], self._end = 0, at
            if abs(at - self._end) <= GAP_S * SAMPLE_RATE_HZ:
                at = self._end  # times are rounded, and clocks of devices drift
            if at > self._end:
                self._put(np.zeros(at - self._end, np.float32))
            self._put(samples[max(0, self._end - at) :])

    def window(self, end_s: float) -> tuple[Waveform, float]:
        """The second that ends at end_s, or at the last sample where the sound lags -> (16000,), silent
        where nothing was heard, and its end on the clock (end_s where there is no sound at all)."""
        with self._lock:
            if self._end is None:
                return np.zeros(WINDOW_SAMPLES, np.float32), end_s
            end = min(round(end_s * SAMPLE_RATE_HZ), self._end)
            end = max(end, self._end - self._kept + WINDOW_SAMPLES)
            places = np.arange(end - WINDOW_SAMPLES, end) % self._kept
            return self._ring[places], end / SAMPLE_RATE_HZ

    def _put(self, samples: Waveform) -> None:
        assert self._end is not None
        self._end += samples.size
        samples = samples[-self._kept :]
        self._ring[np.arange(self._end - samples.size, self._end) % self._kept] = samples


class Resampled:
    """Decoded frames of any format -> float32 at a rate, frame by frame: (n,) mixed to one channel, or
    (n,2) where stereo is asked for."""

    def __init__(self, rate_hz: int, *, stereo: bool = False) -> None:
        self.rate_hz, self.stereo = rate_hz, stereo
        self._kind: tuple[str, str, int] | None = None
        self._resampler: Any = None

    def __call__(self, frame: Any) -> Samples:
        import av

        kind = (frame.format.name, frame.layout.name, frame.rate)
        if kind != self._kind:  # also after a reconnection
            self._kind = kind
            layout = "stereo" if self.stereo else None
            self._resampler = av.AudioResampler("flt", layout, self.rate_hz)
        frame.pts = None  # its time is kept beside it: a jump of the clock is no error here
        parts = self._resampler.resample(frame)
        if self.stereo:
            found = [part.to_ndarray().reshape(-1, 2) for part in parts]
        else:
            found = [mono_of(part) for part in parts]
        return np.concatenate([np.zeros((0, 2) if self.stereo else 0, np.float32), *found])


class Held:
    """Pieces of sound (n,channels) with their times, for a writer in another thread; bounded."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, Samples]] = deque(maxlen=_MOST_HELD)
        self._lock = threading.Lock()

    def add(self, samples: Samples, time_s: float) -> None:
        with self._lock:
            self._pieces.append((time_s, samples))
            while time_s - self._pieces[0][0] > _HELD_S:
                self._pieces.popleft()

    def until(self, time_s: float) -> list[tuple[float, Samples]]:
        """Take those that begin before a time."""
        with self._lock:
            found = []
            while self._pieces and self._pieces[0][0] < time_s:
                found.append(self._pieces.popleft())
            return found
