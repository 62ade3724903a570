"""Options of a live source."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from save_deploy.errors import DataError
from save_deploy.options import KEY, option
from save_deploy.runtime.bulk.options import BulkOptions

LIVE = "Live"
_OF_MANY = tuple(name for field in fields(BulkOptions) for name in field.metadata[KEY].names)


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """Options of a live source. patience_s: how long a lost source is retried, in seconds."""

    live: bool = option(
        "--live", panel=LIVE, default=False,
        help="SOURCE is a live source: camera, rtsp:// or any address, v4l2:/dev/video0 or another "
        "FORMAT:DEVICE, - for a pipe, or a file played at its own speed. Ctrl-C ends it.",
        excludes=_OF_MANY,
    )  # fmt: skip
    microphone: str | None = option(
        "--microphone", panel=LIVE, default=None, needs=("--live",),
        default_text="the source's own sound", help="Separate sound source, such as alsa:default.",
    )  # fmt: skip
    patience_s: float = option(
        "--patience", panel=LIVE, default=60.0, needs=("--live",),
        help="Seconds for which a lost source is retried.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not (math.isfinite(self.patience_s) and self.patience_s >= 0):
            raise DataError(
                "wrong patience", got=f"{self.patience_s} s", expected="seconds, 0 or more"
            )
