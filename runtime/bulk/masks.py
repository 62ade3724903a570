"""Mask file of one video: parquet with one row per frame; the footer names the run and the video.

Columns: t_s (seconds from the start of the section), second (index of the second of sound), height,
width, counts (COCO's compressed run lengths, as written by pycocotools), share (of sounding pixels,
0 to 1).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.transforms import Mask
from save_deploy.errors import DataError
from save_deploy.runtime.bulk.tables import rows_of
from save_deploy.runtime.result import rle_of
from save_deploy.runtime.video.sinks import MaskedFrame

RUN_KEY, VIDEO_KEY, ID_KEY = b"save-deploy.run", b"save-deploy.video", b"save-deploy.id"
_ROWS = 512  # rows per write
_MAX_PIXELS = 2**28  # largest mask that is read; no video is larger
# Each number: digits of five bits as characters from "0", lowest first; all but the last have bit 5.
_COUNTS = re.compile(r"(?:[P-o]{0,6}+[0-O])++")
_NO_RUNS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Row:
    """One frame with its mask as run lengths."""

    t_s: float
    second: int
    height: int
    width: int
    counts: str
    share: float

    @classmethod
    def of(cls, t_s: float, second: int, mask: Mask) -> Row:
        """Encode a mask bool (H,W)."""
        from pycocotools import mask as coco

        (height, width), runs = mask.shape, rle_of(mask)
        counts = coco.frPyObjects(runs, height, width)["counts"].decode()
        share = sum(runs["counts"][1::2]) / mask.size
        return cls(t_s, second, height, width, counts, share)

    @property
    def rle(self) -> dict[str, Any]:
        """Mask as in COCO's JSON."""
        return {"size": [self.height, self.width], "counts": self.counts}

    def mask(self) -> Mask:
        """Decode the mask to bool (H,W)."""
        from pycocotools import mask as coco

        pixels: NDArray[np.uint8] = coco.decode(self.rle)
        return pixels.astype(bool)

    def check(self, origin: str) -> Row:
        """Return the row. Raises DataError for values that pycocotools would read without a check."""
        height, width = self.height, self.width
        size = 0 < height and 0 < width and height * width <= _MAX_PIXELS
        runs = _runs_of(self.counts) if size and _COUNTS.fullmatch(self.counts) else _NO_RUNS
        # each run is bounded too, so that their sum cannot wrap
        within = 0 <= runs.min(initial=0) and runs.max(initial=0) <= height * width
        right = size and within and runs.sum() == height * width
        if not (right and 0 <= self.share <= 1 and math.isfinite(self.t_s)):
            raise DataError(
                "wrong row in a mask file",
                got=f"{origin}: {self!r}"[:200],
                expected="run lengths of height times width pixels, a share from 0 to 1",
            )
        return self


def _runs_of(counts: str) -> NDArray[np.int64]:
    """Decode run lengths int64 (N), as rleFrString in COCO's maskApi.c; wrong ones may be negative."""
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(digits < 32)
    starts = np.append(0, ends[:-1] + 1)
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, ends - starts + 1))
    runs = np.add.reduceat((digits & 31) << places, starts)
    runs -= (digits[ends] >> 4 & 1) << places[ends] + 5  # the highest bit is the sign
    for parity in (1, 2):  # from the fourth on differences to the run two before
        runs[parity::2] = np.cumsum(runs[parity::2])
    return runs


class MaskFile:
    """Sink for rows of a mask file. It is complete after finish()."""

    def __init__(self, path: Path, *, run: str, video: str, name: str) -> None:
        from pyarrow import parquet

        said = {RUN_KEY: run.encode(), VIDEO_KEY: video.encode(), ID_KEY: name.encode()}
        self._schema = _schema().with_metadata(said)
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self.n = 0

    def add(self, masked: MaskedFrame) -> None:
        self._rows.append(Row.of(round(masked.frame.time_s, 6), masked.second, masked.mask))
        self.n += 1
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            rows = [vars(row) for row in self._rows]
            self._writer.write_table(pa.Table.from_pylist(rows, self._schema))
            self._rows = []

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the disk may be full
            self._writer.close()


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("t_s", pa.float64()), ("second", pa.int32()), ("height", pa.int32()),
            ("width", pa.int32()), ("counts", pa.string()), ("share", pa.float64()),
        ]
    )  # fmt: skip


def frames_done(path: Path, *, run: str, video: str) -> int | None:
    """Return the number of frames in the mask file of this run and video; None without such a file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            said = file.schema_arrow.metadata or {}
            rows: int = file.metadata.num_rows
    except (OSError, pa.ArrowException):
        return None
    mine = (said.get(RUN_KEY), said.get(VIDEO_KEY)) == (run.encode(), video.encode())
    return rows if mine else None


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a mask file in order. Raises DataError for other files and for wrong rows."""
    for values in rows_of(path, _schema(), what="a mask file"):
        yield Row(**values).check(str(path))
