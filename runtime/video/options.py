"""What of a video is masked, and what is written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.errors import DataError
from save_deploy.options import option

SECTION = "Section"


@dataclass(frozen=True)
class Section:
    """From start_s on, `seconds` long (None: to the end), at most `fps` frames per second."""

    start_s: float = option(
        "--start", panel=SECTION, default=0.0, help="Seconds into the video to begin at."
    )
    seconds: float | None = option(
        "--seconds", panel=SECTION, default=None, default_text="to the end",
        help="Length of the section.",
    )  # fmt: skip
    fps: float | None = option(
        "--fps", panel=SECTION, default=None, default_text="the video's",
        help="Upper limit of frames per second.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        fine = [math.isfinite(self.start_s) and self.start_s >= 0]
        fine += [v is None or (math.isfinite(v) and v > 0) for v in (self.seconds, self.fps)]
        if not all(fine):
            raise DataError(
                "wrong section of the video",
                got=f"start {self.start_s}, seconds {self.seconds}, fps {self.fps}",
                expected="positive numbers",
            )

    @property
    def end_s(self) -> float:
        """On the section's own clock."""
        return math.inf if self.seconds is None else self.seconds


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to read and what to write. color: empty for pink; silent: accept a file without sound."""

    video: Path = option(help="mp4, mkv, webm, mov, avi: what PyAV reads.")
    out: Path | None = option(
        "--out", "-o", default=None,
        help="Video to write (.mp4, .mov, .mkv, .webm): what sounds is marked, the sound kept.",
    )  # fmt: skip
    masks: Path | None = option(
        "--masks", default=None, help="Folder for one PNG per frame: white = sounding."
    )
    record: Path | None = option(
        "--json", default=None, help="Loudness per second, masked share per frame."
    )
    force: bool = option("--force", default=False, help="Replace outputs that exist.")
    section: Section = field(default_factory=Section)
    color: str = option(
        "--color", default="", default_text="pink", help='Of the marks: a name, or "#ff3caa".'
    )
    silent: bool = option("--silent", default=False, help="Accept a video without sound.")
