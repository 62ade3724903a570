"""What became of each video: results/ with one row a video, and failed.csv, the next run's manifest.

Every driver appends to a journal of its own, results/.NAME.jsonl, locked while it lives. At its end
(unless it is interrupted) and at the start of the next, journals of ended drivers go into
results/videos.parquet.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from save_deploy.files import new_file, remove
from save_deploy.partials import unwritable
from save_deploy.progress import was_interrupted
from save_deploy.runtime.bulk.place import Place, read_table
from save_deploy.runtime.bulk.videos import COLUMNS, Video

DONE, FAILED, STOPPED = "done", "failed", "stopped"
TABLE = "videos.parquet"
_FAILED_COLUMNS = ("id", "uri", "error", "attempts", "size", "start_s", "seconds", "fps")
_WHAT = "the results"


@dataclass(frozen=True)
class Result:
    """Of one video. frames of its mask file, wall_s of the try that made it, sha256 of that file;
    error: its first line. fresh: made now, not by an earlier run; times: seconds by stage."""

    video: Video
    status: str
    frames: int = 0
    wall_s: float | None = None
    host: str = ""
    sha256: str = ""
    error: str = ""
    attempts: int = 0
    fresh: bool = True
    times: dict[str, float] = field(default_factory=dict)
    exit_code: int = 1  # of what stopped the run

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Result:
        """What to_json gave."""
        values = json.loads(text)
        return cls(**{**values, "video": Video(**values["video"])})

    @property
    def row(self) -> dict[str, Any]:
        """As results/ holds it."""
        about = {key: getattr(self.video, key) for key in COLUMNS}
        own = ("status", "frames", "wall_s", "host", "sha256", "error", "attempts")
        return about | {key: getattr(self, key) for key in own}


class Ledger:
    """A block. Rows of the table when it began are known; what is added is on disk at once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._journal: TextIO | None = None

    def __enter__(self) -> Self:
        place = self.place
        try:
            place.results.mkdir(parents=True, exist_ok=True)
            self._path = place.results / f".{secrets.token_hex(6)}.jsonl"
            self._journal = self._path.open("a")
            _lock(self._journal.fileno())
        except OSError as error:
            raise unwritable(_WHAT, error) from error
        self.rows = {row["id"]: row for row in self._merge()}
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()
        if not was_interrupted():  # then nothing more is put in its place: the next run merges it
            self._merge()

    def add(self, result: Result) -> None:
        """Raises OutputError where it cannot be written."""
        assert self._journal is not None
        self.rows[result.video.id] = result.row
        try:
            self._journal.write(json.dumps(result.row) + "\n")
            self._journal.flush()
        except OSError as error:
            raise unwritable(_WHAT, error) from error

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows.values() if row["status"] == FAILED]

    def _merge(self) -> list[dict[str, Any]]:
        """The table with the journals of all drivers that ended."""
        place = self.place
        with place.locked():
            before = read_table(place.results / TABLE)
            rows, ended = {row["id"]: row for row in before}, []
            for path in sorted(place.results.glob(".*.jsonl"), key=_age):
                with _ended(path) as lines:
                    for row in lines:
                        rows[row["id"]] = row
                    ended += [path] if lines is not _ALIVE else []
            after = [rows[name] for name in sorted(rows)]
            if after != before:
                _write_table(place.results / TABLE, after)
                _write_failed(place.failed, [row for row in after if row["status"] == FAILED])
            for path in ended:
                remove(path)
        return after


_ALIVE: list[dict[str, Any]] = []


@contextlib.contextmanager
def _ended(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Rows of a journal whose driver ended; _ALIVE for that of one that lives."""
    try:
        file = path.open("r+")
    except OSError:  # another driver merged it
        yield _ALIVE
        return
    with file:
        if not _lock(file.fileno()):
            yield _ALIVE
            return
        file.seek(0)
        rows = []
        for line in file:
            with contextlib.suppress(ValueError):  # the last line of one that was killed
                rows.append(json.loads(line))
        yield rows


def _lock(descriptor: int) -> bool:
    """False where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return os.path.getmtime(path)
    return 0.0


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        [
            ("id", pa.string()), ("status", pa.string()), ("frames", pa.int64()),
            ("wall_s", pa.float64()), ("host", pa.string()), ("sha256", pa.string()),
            ("error", pa.string()), ("attempts", pa.int32()), ("uri", pa.string()),
            ("size", pa.int64()), ("start_s", pa.float64()), ("seconds", pa.float64()),
            ("fps", pa.string()),
        ]
    )  # fmt: skip
    with new_file(path, what=_WHAT) as partial:
        parquet.write_table(pa.Table.from_pylist(rows, schema), partial)


def _write_failed(path: Path, rows: list[dict[str, Any]]) -> None:
    with new_file(path, what=_WHAT) as partial, partial.open("w", newline="") as file:
        table = csv.DictWriter(file, _FAILED_COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
