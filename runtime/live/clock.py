"""Convert time stamps of an input, which may start anywhere and jump, to the session's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

_JUMP_S = 3.0  # larger steps between packets mean that the input's clock was reset
_WALL_S = 10.0  # stamps this close to the time of day are the time of day


@dataclass(frozen=True)
class Now:
    """Clocks of the machine; tests replace them."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass
class Clock:
    """Clock of one input, shared by its frames and its sound so that they stay synchronized.

    started: time.monotonic() at time 0 of the session.
    Session time is the stamp plus an offset, which is set at the arrival of the first packet and
    again after a jump, for example a reconnection. Stamps that are the time of day (devices) give
    the offset exactly.
    """

    started: float
    now: Now = field(default_factory=Now)
    _shift: float | None = None  # session time - stamp
    _last: float = 0.0  # stamp
    _offset: float = 0.0  # monotonic time of capture - stamp, for the smallest delay observed

    def __call__(self, stamp_s: float) -> tuple[float, float]:
        """Return the session time of a stamp and its capture time on the monotonic clock."""
        arrived = self.now.monotonic()
        if self._shift is None or abs(stamp_s - self._last) > _JUMP_S:
            offset = arrived - stamp_s
            if abs(self.now.wall() - stamp_s) < _WALL_S:
                offset = arrived - self.now.wall()
            self._offset, self._shift = offset, offset - self.started
        self._last = stamp_s
        self._offset = min(self._offset, arrived - stamp_s)
        return stamp_s + self._shift, stamp_s + self._offset

    def forget(self) -> None:
        """Reset after a lost input: the next stamp sets the offset again."""
        self._shift = None
