"""What the text of an option means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from save_deploy.errors import SaveDeployError


def parse_mixture(text: str) -> dict[str, float]:
    """ "a=0.2,b=0.8" or "a" -> weights by source."""
    mixture = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            mixture[name] = float(weight or 1.0)
        except ValueError:
            raise SaveDeployError(
                "unreadable data mixture", got=text, expected="scenes=0.2,stamps=0.8"
            ) from None
    return mixture


def parse_odds(text: str) -> tuple[float, ...]:
    """ "0.1,0.6,0.3" -> shares of 0, 1, 2 sources."""
    try:
        odds = tuple(float(part) for part in text.split(","))
        if min(odds) < 0 or sum(odds) <= 0:
            raise ValueError
    except ValueError:
        raise SaveDeployError(
            "unreadable shares", got=text, expected="such as 0.08,0.78,0.14"
        ) from None
    return odds


def parse_range(text: str, kind: Callable[[str], Any]) -> tuple[Any, Any]:
    """ "2-4" -> (2, 4)."""
    try:
        low, high = (kind(part) for part in text.split("-"))
    except ValueError:
        raise SaveDeployError(
            "unreadable range", got=text, expected="MIN-MAX, such as 2-4"
        ) from None
    return low, high
