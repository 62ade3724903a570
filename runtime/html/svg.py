"""Elements of SVG: axes, marks, text. Colors are classes of style.css, so themes apply."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDE, NARROW = 520, 330  # px: width of a column of the page and of a phone
N_COLORS = 8


def responsive(draw: Callable[[int], str]) -> str:
    """Return the drawing for a column and for a phone; the style sheet shows one of them."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def color(index: int) -> str:
    """Return the class of the color of a row; index 0 is the reference."""
    return "c0" if index == 0 else f"c{(index - 1) % N_COLORS + 1}"


def picture(width: int, height: float, label: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(label)}">'
        + "".join(body)
        + "</svg>"
    )


def text(x: float, y: float, words: str, *, anchor: str = "start", style: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">'
        f"{escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "") -> str:
    hover = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}" height="{height:.1f}" '
        f'rx="2" class="{style}">{hover}</rect>'
    )


def mark(x: float, y: float, index: int, size: float = 5.5) -> str:
    """Draw a point of a row. Rows differ in shape and color, so that either is sufficient."""
    shapes = (
        [(math.cos(a), math.sin(a)) for a in (i * math.pi / 6 for i in range(12))],  # round
        [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        [(0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)],
        [(0, -1.1), (1.05, 0.8), (-1.05, 0.8)],
        [(0, 1.1), (1.05, -0.8), (-1.05, -0.8)],
    )
    points = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in shapes[index % 5])
    return f'<polygon points="{points}" class="mark {color(index)}"/>'


@dataclass(frozen=True)
class Scale:
    """Map of values low..high to px start..end, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, n: int = 5) -> list[float]:
        """Return round values within the range."""
        if not self.log:
            return linear_ticks(self.low, self.high, n)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [s * 10.0**e for e in range(first, last + 1) for s in steps]
            found = [v for v in found if self.low <= v <= self.high]
            if len(found) <= n + 2:
                break
        return found


def linear_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Return at most about n multiples of 1, 2 or 5 times a power of ten in low..high."""
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), int(high / step + 1e-9) + 1)]


def padded(
    values: Sequence[float], share: float = 0.06, least: float = 1e-3
) -> tuple[float, float]:
    """Return the range of the values with a margin on both sides."""
    low, high = min(values), max(values)
    room = max((high - low) * share, least, abs(high) * 1e-3)
    return low - room, high + room


def number(value: float) -> str:
    """Format a tick or a time: 1200, 64, 6.4, 0.064."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9)) if abs(value) < 100 else 0
    shown = f"{value:.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown
