"""Times of inputs that start, stop and jump -> one clock of the session, and the moment of capture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

_JUMP_S = 3.0  # between packets, pictures and sound interleaved: more is a clock that was set anew
_WALL_S = 10.0  # stamps this near to the time of day are it


@dataclass(frozen=True)
class Now:
    """What the machine's clocks say; tests give their own."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass
class Clock:
    """One input. started: time.monotonic() at which the session's clock is 0.

    Pictures and sound of an input share it, so that they stay in step as they were recorded. The
    session's time runs with the input's own, from where it arrived first; after a jump, as a
    reconnection is, from where it arrives again. Stamps that are the time of day, which devices give,
    need no such guess.
    """

    started: float
    now: Now = field(default_factory=Now)
    _shift: float | None = None  # session time - stamp
    _last: float = 0.0  # stamp
    _offset: float = 0.0  # monotonic time of capture - stamp: the least delay seen

    def __call__(self, stamp_s: float) -> tuple[float, float]:
        """-> (time in the session, moment of capture on the monotonic clock)."""
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
        """The input was lost: its next stamp begins anew."""
        self._shift = None
