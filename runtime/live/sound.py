"""The last seconds of sound of a live source, on the session's clock."""

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

KEPT_S = 4.0  # sound kept for masks, which never need older sound
_HELD_S = 20.0  # sound kept for an output file whose writer is slower than the source
_MOST_HELD = 10_000  # pieces
Samples = NDArray[np.float32]


class Ears:
    """Ring buffer of 16 kHz mono sound, indexed by time. One thread writes, another reads."""

    def __init__(self) -> None:
        self._kept = round(KEPT_S * SAMPLE_RATE_HZ)
        self._ring = np.zeros(self._kept, np.float32)
        self._end: int | None = None  # index of the sample after the last, counted from time 0
        self._lock = threading.Lock()

    def add(self, samples: Waveform, time_s: float) -> None:
        """Add samples (n,) that start at time_s.

        Gaps become silence. Samples that overlap earlier ones are dropped. A step of more than the
        buffer's length clears the buffer.
        """
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
        """Return the second (16000,) of sound that ends at end_s, and its actual end time.

        If the sound is late, the second ends at the last sample. Missing sound is silence; without
        any sound the end time is end_s.
        """
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
    """Resampler of decoded audio frames of any format to float32: mono (n,), or stereo (n,2)."""

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
        frame.pts = (
            None  # the caller keeps the time; the resampler would fail at a jump of the clock
        )
        parts = self._resampler.resample(frame)
        if self.stereo:
            found = [part.to_ndarray().reshape(-1, 2) for part in parts]
        else:
            found = [mono_of(part) for part in parts]
        return np.concatenate([np.zeros((0, 2) if self.stereo else 0, np.float32), *found])


class Held:
    """Bounded queue of pieces of sound (n,channels) with their times, for a writer's thread."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, Samples]] = deque(maxlen=_MOST_HELD)
        self._lock = threading.Lock()

    def add(self, samples: Samples, time_s: float) -> None:
        with self._lock:
            self._pieces.append((time_s, samples))
            while time_s - self._pieces[0][0] > _HELD_S:
                self._pieces.popleft()

    def until(self, time_s: float) -> list[tuple[float, Samples]]:
        """Remove and return the pieces that start before a time."""
        with self._lock:
            found = []
            while self._pieces and self._pieces[0][0] < time_s:
                found.append(self._pieces.popleft())
            return found
