"""How a live source is read and shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from save_deploy.errors import DataError
from save_deploy.options import option

LIVE = "Live"


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """live: the video is a source that goes on while it is masked."""

    live: bool = option(
        "--live", panel=LIVE, default=False,
        help="SOURCE is a live source: camera, rtsp:// or any address, v4l2:/dev/video0 or another "
        "FORMAT:DEVICE, - for a pipe, or a file played at its own speed. Ctrl-C ends it.",
    )  # fmt: skip
    microphone: str | None = option(
        "--microphone", panel=LIVE, default=None, needs=("--live",),
        default_text="the source's own sound", help="Sound from elsewhere, such as alsa:default.",
    )  # fmt: skip
    patience_s: float = option(
        "--patience", panel=LIVE, default=60.0, needs=("--live",),
        help="Seconds to try a lost source again.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not (math.isfinite(self.patience_s) and self.patience_s >= 0):
            raise DataError(
                "wrong patience", got=f"{self.patience_s} s", expected="seconds, 0 or more"
            )
