"""What other processes did to a timing, and whether its ratios may be shown."""

from __future__ import annotations

from dataclasses import dataclass

FEWEST_ROUNDS = 3  # undisturbed ones, without which nothing is compared


@dataclass(frozen=True)
class Disturbance:
    """CPU time of other processes during the rounds of a timing.

    rounds, disturbed: number of timed rounds, and of those in which others took cores that the timed
        threads need.
    asked: rounds asked for; disturbed rounds were repeated, up to as many again.
    cores: cores that others used in the disturbed rounds, on average.
    of: cores that this process may use.
    unknown: why it was not checked, "" when it was.
    """

    rounds: int = 0
    asked: int = 0
    disturbed: int = 0
    cores: float = 0.0
    of: int = 1
    unknown: str = ""

    @property
    def clean(self) -> int:
        return self.rounds - self.disturbed

    @property
    def withheld(self) -> bool:
        """True when fewer than half of the rounds asked for (3 at least) were undisturbed."""
        needed = min(self.asked, self.rounds) / 2
        return self.disturbed > 0 and self.clean < max(FEWEST_ROUNDS, needed)

    @property
    def reason(self) -> str:
        """Why ratios are withheld, "" when they are not."""
        if not self.withheld:
            return ""
        return (
            f"other processes used {self._words}; times are not comparable, "
            "run again on an idle machine"
        )

    @property
    def text(self) -> str:
        """For the note beside a table; "" for an idle machine."""
        if self.unknown:
            return f"other processes: not checked, {self.unknown}"
        if self.withheld:
            return f"NOT A RESULT, ratios are withheld: {self.reason}"
        if self.disturbed:
            return f"dropped: rounds in which other processes used {self._words}"
        return ""

    @property
    def _words(self) -> str:
        return f"{self.cores:.1f} of {self.of} cores in {self.disturbed} of {self.rounds} rounds"
