"""Mask file of one video: parquet with one row per frame; the footer names the run and the video.

Columns: t_s (seconds from the start of the section), second (index of the second of sound), height,
width, counts (COCO's compressed run lengths, as written by pycocotools), share (of sounding pixels,
0 to 1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.transforms import Mask
from save_deploy.errors import DataError
from save_deploy.runtime.result import rle_of
from save_deploy.runtime.video.sinks import MaskedFrame

RUN_KEY, VIDEO_KEY, ID_KEY = b"save-deploy.run", b"save-deploy.video", b"save-deploy.id"
_ROWS = 512  # rows per write
_MAX_PIXELS = 2**28  # largest mask that is read; no video is larger


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
        """Decode the mask to bool (H,W). Raises DataError for run lengths of another size."""
        from pycocotools import mask as coco

        if not 0 < self.height * self.width <= _MAX_PIXELS:
            raise DataError("wrong mask size", got=f"{self.height} x {self.width}")
        try:
            pixels: NDArray[np.uint8] = coco.decode(self.rle)
        except ValueError as error:
            raise DataError("mask cannot be read", got=str(error)) from None
        return pixels.astype(bool)


class MaskFile:
    """Sink for rows of a mask file. It is complete after finish()."""

    def __init__(self, path: Path, *, run: str, video: str, name: str) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        said = {RUN_KEY: run.encode(), VIDEO_KEY: video.encode(), ID_KEY: name.encode()}
        self._schema = pa.schema(
            [
                ("t_s", pa.float64()), ("second", pa.int32()), ("height", pa.int32()),
                ("width", pa.int32()), ("counts", pa.string()), ("share", pa.float64()),
            ],
            metadata=said,
        )  # fmt: skip
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
    """Yield the rows of a mask file in order. Raises DataError for other files."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                for values in batch.to_pylist():
                    yield Row(**values)
    except (OSError, pa.ArrowException, TypeError) as error:
        raise DataError("not a mask file", got=f"{path}: {error}") from None
