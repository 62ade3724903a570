"""Outputs of a run: protocol, folder of masks and JSON record (the overlay video is in writer.py).

A sink writes to a temporary path (files.new_file, files.new_folder). The run renames the paths when
all outputs are complete.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from PIL import Image

from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Mask
from save_deploy.runtime.result import polygons_of, rle_of
from save_deploy.runtime.video.source import TimedFrame

_SILENT = 1e-6  # root mean square below which the loudness is None


@dataclass(frozen=True)
class MaskedFrame:
    """A frame, its mask bool (H,W), and the index and waveform (n,) of its second of sound."""

    frame: TimedFrame
    mask: Mask
    second: int
    waveform: Waveform

    @property
    def share(self) -> float:
        """Share of sounding pixels, 0 to 1."""
        return np.count_nonzero(self.mask) / self.mask.size


class Sink(Protocol):
    """An output: call add for every frame, then finish. close may follow at any time, repeatedly."""

    def add(self, masked: MaskedFrame) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class MaskFolder:
    """Folder of masks 000000.png, ...: one 1-bit PNG per frame at frame size, white = sounding."""

    def __init__(self, folder: Path) -> None:
        """folder: an existing, empty folder."""
        self.folder, self._n = folder, 0

    def add(self, masked: MaskedFrame) -> None:
        Image.fromarray(masked.mask).save(self.folder / f"{self._n:06d}.png")
        self._n += 1

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Record:
    """JSON record, written second by second: loudness, and the mask share of every frame."""

    def __init__(self, path: Path, head: dict[str, Any], masks: str | None = None) -> None:
        """masks: rle or polygons for a frame's mask as well."""
        self._masks = masks
        self._file: TextIO = path.open("w")
        self._file.write(f'{{\n  "run": {json.dumps(head)},\n  "seconds": [')
        self._second: dict[str, Any] | None = None
        self._n, self.total = 0, dict[str, Any]()  # total: set before finish()

    def add(self, masked: MaskedFrame) -> None:
        if self._second is None or masked.second != self._second["second"]:
            self._write_second()
            self._second = {
                "second": masked.second,
                "loudness_dbfs": loudness_dbfs(masked.waveform),
                "mask_share": 0.0,
                "frames": [],
            }
        frame: dict[str, Any] = {
            "time_s": round(masked.frame.time_s, 6),
            "mask_share": round(masked.share, 6),
        }
        self._second["frames"].append(frame | mask_as_json(masked.mask, self._masks))

    def finish(self) -> None:
        self._write_second()
        self._file.write(f'\n  ],\n  "total": {json.dumps(self.total)}\n}}\n')
        self._file.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _write_second(self) -> None:
        if self._second is None:
            return
        shares = [frame["mask_share"] for frame in self._second["frames"]]
        self._second["mask_share"] = round(float(np.mean(shares)), 6)
        self._file.write(("," if self._n else "") + "\n    " + json.dumps(self._second))
        self._n += 1


def mask_as_json(mask: Mask, form: str | None) -> dict[str, Any]:
    """{"rle": ...} or {"polygons": [...]} of a mask bool (H,W), nothing for form None."""
    if form == "rle":
        return {"rle": rle_of(np.asarray(mask))}
    if form == "polygons":
        return {"polygons": [ring.tolist() for ring in polygons_of(np.asarray(mask))]}
    return {}


def loudness_dbfs(waveform: Waveform) -> float | None:
    """Return the root mean square of samples (n,) in dBFS (0 = full scale); None for silence."""
    rms = math.sqrt(np.mean(np.square(waveform, dtype=np.float64))) if waveform.size else 0.0
    return round(20 * math.log10(rms), 2) if rms > _SILENT else None
