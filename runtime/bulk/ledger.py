"""Results per video: results/videos.parquet and failed.csv, which a next run accepts as manifest.

Every driver appends to its own journal results/.NAME.jsonl, which it locks while it runs. Journals of
ended drivers are merged into results/videos.parquet at the end of a run (unless it is interrupted)
and at the start of the next one.
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
from save_deploy.partials import make_in, unwritable
from save_deploy.progress import was_interrupted
from save_deploy.runtime.bulk.place import Place
from save_deploy.runtime.bulk.tables import rows_of
from save_deploy.runtime.bulk.videos import COLUMNS, Video

DONE, FAILED, STOPPED = "done", "failed", "stopped"
_OPTIONAL = ("wall_s", "size", "seconds")  # columns of results in which values may be missing
TABLE = "videos.parquet"
_FAILED_COLUMNS = ("id", "uri", "error", "attempts", "size", "start_s", "seconds", "fps")
_WHAT = "the results"


@dataclass(frozen=True)
class Result:
    """Result of one video.

    frames, sha256: of its mask file.
    wall_s: seconds of the successful attempt.
    error: first line of the error.
    fresh: False if an earlier run made the masks.
    times: seconds by stage.
    """

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
    exit_code: int = 1  # of the error that stopped the run

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Inverse of to_json."""
        values = json.loads(text)
        return cls(**{**values, "video": Video(**values["video"])})

    @property
    def row(self) -> dict[str, Any]:
        """Row of results/videos.parquet."""
        about = {key: getattr(self.video, key) for key in COLUMNS}
        own = ("status", "frames", "wall_s", "host", "sha256", "error", "attempts")
        return about | {key: getattr(self, key) for key in own}


class Ledger:
    """Context manager for the results of a run. Every added row is written to disk immediately."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._journal: TextIO | None = None

    def __enter__(self) -> Self:
        place = self.place
        path = place.results / f".{secrets.token_hex(6)}.jsonl"
        with place.locked():  # until it is locked it looks like the journal of an ended driver
            try:
                self._journal = make_in(place.results, lambda: path.open("a"))
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
        if not was_interrupted():  # after an interrupt the next run merges the journal
            self._merge()

    def add(self, result: Result) -> None:
        """Append a result to the journal. Raises OutputError if it cannot be written."""
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
        """Merge the journals of ended drivers into the table and return its rows."""
        place = self.place
        with place.locked():
            before = read_results(place)
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
    """Yield the rows of an ended driver's journal; _ALIVE for a driver that still runs."""
    try:
        file = path.open("r+", errors="replace")
    except OSError:  # already merged by another driver
        yield _ALIVE
        return
    with file:
        if not _lock(file.fileno()):
            yield _ALIVE
            return
        file.seek(0)
        yield [row for line in file if (row := _row_of(line)) is not None]


def _row_of(line: str) -> dict[str, Any] | None:
    """Return the row of a journal's line.

    None for a line that no run writes whole: the last one of a killed driver, or a stranger's.
    """
    import pyarrow as pa

    schema = _schema()
    try:
        row = json.loads(line)
        whole = isinstance(row, dict) and set(row) == set(schema.names)
        if not whole or any(row[k] is None for k in schema.names if k not in _OPTIONAL):
            return None
        pa.Table.from_pylist([row], schema)
    except (ValueError, TypeError, RecursionError, pa.ArrowException):
        return None
    return row if row["status"] in (DONE, FAILED, STOPPED) else None


def _lock(descriptor: int) -> bool:
    """Lock a file; return False if another process holds the lock."""
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


def read_results(place: Place) -> list[dict[str, Any]]:
    """Return the rows of results/videos.parquet; [] without it. Raises DataError for another file."""
    path = place.results / TABLE
    if not path.exists():
        return []
    return list(rows_of(path, _schema(), what="the results of a run", optional=_OPTIONAL))


def _schema() -> Any:
    """Columns of results/videos.parquet: the keys of Result.row."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()), ("status", pa.string()), ("frames", pa.int64()),
            ("wall_s", pa.float64()), ("host", pa.string()), ("sha256", pa.string()),
            ("error", pa.string()), ("attempts", pa.int32()), ("uri", pa.string()),
            ("size", pa.int64()), ("start_s", pa.float64()), ("seconds", pa.float64()),
            ("fps", pa.string()),
        ]
    )  # fmt: skip


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with new_file(path, what=_WHAT) as partial:
        parquet.write_table(pa.Table.from_pylist(rows, _schema()), partial)


def _write_failed(path: Path, rows: list[dict[str, Any]]) -> None:
    with new_file(path, what=_WHAT) as partial, partial.open("w", newline="") as file:
        table = csv.DictWriter(file, _FAILED_COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
