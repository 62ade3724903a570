"""Options of a run over a video: section and outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from save_deploy.errors import DataError
from save_deploy.options import option

SECTION = "Section"
KEYFRAMES: Literal["keyframes"] = "keyframes"
NATIVE = "native"
RECORD_MASKS = ("rle", "polygons")
Fps = float | Literal["keyframes"] | None


def parse_fps(text: str) -> Fps:
    """Parse a frame rate: "2.5" -> 2.5, "keyframes" -> "keyframes", "native" -> None.

    Raises DataError.
    """
    if text == KEYFRAMES:
        return KEYFRAMES
    if text == NATIVE:
        return None
    try:
        return float(text)
    except ValueError:
        raise DataError(
            "wrong frame rate", got=text, expected=f"frames per second, {KEYFRAMES} or {NATIVE}"
        ) from None


@dataclass(frozen=True)
class Section:
    """Section of a video.

    start_s: start in seconds.
    seconds: length; None for the rest of the video.
    fps: upper limit of frames per second; "keyframes" for key frames only, None for all frames.
    """

    start_s: float = option(
        "--start", panel=SECTION, default=0.0, help="Start of the section in seconds."
    )
    seconds: float | None = option(
        "--seconds", panel=SECTION, default=None, default_text="to the end",
        help="Length of the section in seconds.",
    )  # fmt: skip
    fps: Fps = option(
        "--fps", panel=SECTION, default=None, parse=parse_fps, text="native", metavar="RATE",
        help="Upper limit of frames per second, or keyframes (only these are decoded), or native.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        fine = [math.isfinite(self.start_s) and self.start_s >= 0]
        limits = (self.seconds, self.most_fps)
        fine += [v is None or (math.isfinite(v) and v > 0) for v in limits]
        if not all(fine):
            raise DataError(
                "wrong section of the video",
                got=f"start {self.start_s}, seconds {self.seconds}, fps {self.fps}",
                expected="positive numbers",
            )

    @property
    def keyframes(self) -> bool:
        return self.fps == KEYFRAMES

    @property
    def most_fps(self) -> float | None:
        """Upper limit of frames per second."""
        return None if isinstance(self.fps, str) else self.fps

    @property
    def end_s(self) -> float:
        """End in seconds from the start of the section."""
        return math.inf if self.seconds is None else self.seconds


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Outputs of a run. color: "" for pink. silent: accept a video without sound."""

    out: Path | None = option(
        "--out", "-o", default=None,
        help="Video to write (.mp4, .mov, .mkv, .webm) with sounding pixels marked and the original "
        "sound. For many videos a folder.",
    )  # fmt: skip
    masks: Path | None = option(
        "--masks", default=None, help="Folder for one PNG per frame: white = sounding."
    )
    matte: Path | None = option(
        "--matte", default=None,
        help="Video for editors to lay over the original (.mov, .webm): transparent where nothing "
        "sounds.",
    )  # fmt: skip
    record: Path | None = option(
        "--json", default=None, help="Loudness per second, masked share per frame. - prints it."
    )
    record_masks: str | None = option(
        "--json-masks", default=None, needs=("--json",), default_text="none",
        help="Masks in it, too: rle (as COCO stores them) or polygons.",
    )  # fmt: skip
    show: bool = option(
        "--show", "--window", default=False, help="Show it in a window while it is masked."
    )
    force: bool = option("--force", default=False, help="Replace existing outputs.")
    section: Section = field(default_factory=Section)
    color: str = option(
        "--color", default="", default_text="pink", help='Color of the marks: a name or "#ff3caa".'
    )
    silent: bool = option("--silent", default=False, help="Accept a video without sound.")

    def __post_init__(self) -> None:
        if self.record_masks is not None and self.record_masks not in RECORD_MASKS:
            raise DataError(
                "wrong --json-masks", got=self.record_masks, expected=" or ".join(RECORD_MASKS)
            )

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths of the requested outputs."""
        paths = (self.out, self.masks, self.matte, self.record)
        return tuple(path for path in paths if path is not None)


@dataclass(frozen=True, kw_only=True)
class RunOptions(OutputOptions):
    """Options of a run over one video."""

    video: Path
