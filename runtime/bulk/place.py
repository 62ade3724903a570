"""Folder of a run over many videos: its files and their owners.

run.json               everything the masks depend on; a run with other values is refused
manifest.parquet       the videos
masks/ab/ID.parquet    see masks.py; ab: first two digits of the hash of the id
failed.csv, results/   see ledger.py
attempts/ID            one line per unfinished attempt; removed after the last one
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from save_deploy.errors import OutputError
from save_deploy.fields import Fields, read_json
from save_deploy.files import new_file, remove, write_text
from save_deploy.machine import version
from save_deploy.partials import dead_partials, is_partial_of, make_in, unwritable
from save_deploy.runtime.bulk.tables import rows_of
from save_deploy.runtime.bulk.videos import Video, id_hash, own_videos

RUN = "run.json"
FORMAT_VERSION = 1
_WHAT = "the folder of the run"
_PACKAGES = ("save-deploy", "numpy", "pillow", "av")  # their versions may change pixels
_OF_BACKEND = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")}


@dataclass(frozen=True)
class RunFacts:
    """Everything the masks of a run depend on, except its videos.

    bundle: sha256 of the bundle's manifest, which contains the hashes of all its files.
    fps, start_s, seconds: defaults for videos without their own.
    """

    bundle: str
    precision: str
    backend: str
    batch: int
    format: str
    masks_at: str
    resize: str
    color: str
    silent: bool
    threshold: float
    start_s: float
    seconds: float | None
    fps: str
    versions: dict[str, str]

    @property
    def hash(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def flat(self) -> dict[str, str]:
        """Return name -> value of all facts; versions by name of the package."""
        values = asdict(self)
        packages = values.pop("versions")
        found = {name: json.dumps(value) for name, value in values.items()}
        return found | {f"version of {name}": v for name, v in packages.items()}


def relevant_versions(backend: str) -> dict[str, str]:
    """Return the versions of the installed packages that may change pixels of a mask."""
    of_backend = _OF_BACKEND.get(backend.partition("-")[0], ("tensorrt", "tensorrt-rtx-cu12"))
    found = {name: version(name) for name in (*_PACKAGES, *of_backend)}
    return {name: v for name, v in found.items() if v}


class Place:
    """Paths in the folder of a run. The constructor writes nothing."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.masks, self.attempts = self.root / "masks", self.root / "attempts"
        self.results, self.failed = self.root / "results", self.root / "failed.csv"
        self.manifest, self.run = self.root / "manifest.parquet", self.root / RUN

    def mask_file(self, name: str) -> Path:
        return self.masks / id_hash(name)[:2] / f"{name}.parquet"

    @property
    def hash(self) -> str:
        """Hash of the run in the folder. Raises OutputError if run.json cannot be read."""
        return _read_facts(self.run)[0]

    def open(self, facts: RunFacts, *, force: bool) -> None:
        """Create the folder, or resume the run in it.

        force: also accept a run with other facts; its masks are then replaced one by one.
        Raises OutputError for a folder of something else, and for a run with other facts.
        """
        text = json.dumps(
            {"format_version": FORMAT_VERSION, "hash": facts.hash, "run": asdict(facts)}, indent=2
        )
        if not self.run.exists():
            self._require_new()
            try:
                with new_file(self.run, what=_WHAT, replace=False) as partial:
                    partial.write_text(text + "\n")
            except OutputError:
                if not self.run.exists():  # else another shard was first
                    raise
        if not force:  # also for the file written here, which another shard may have replaced
            self._require_same(facts)
        elif self.hash != facts.hash:
            write_text(self.run, text + "\n", what=_WHAT)

    def _require_new(self) -> None:
        """Raise OutputError for a folder of something else; another shard may be writing run.json."""
        try:
            others = [p for p in self.root.iterdir() if not is_partial_of(p, self.run)]
        except FileNotFoundError:
            return
        except OSError as error:
            raise unwritable(_WHAT, error) from error
        if others and not self.run.exists():  # in this order: run.json is the first file of a run
            raise OutputError(
                "refusing to write to a folder with other files", got=str(self.root),
                expected=f"a new folder, an empty one, or one with {RUN}",
            )  # fmt: skip

    def _require_same(self, facts: RunFacts) -> None:
        known, there = facts.flat(), _read_facts(self.run)[1]
        differing = [
            name for name in sorted({*known, *there}) if known.get(name) != there.get(name)
        ]
        if differing:
            shown = lambda values: ", ".join(f"{n} {_short(values.get(n))}" for n in differing)
            raise OutputError(
                "the folder contains a run with other settings",
                got=f"{self.root}: {shown(there)}",
                expected=shown(known),
                hint="choose another -o, use the settings of that run, or --force to replace its masks",
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the files that all shards share."""
        try:
            lock = make_in(self.root, lambda: _appended(self.root / ".lock"))
        except OSError as error:
            raise unwritable(_WHAT, error) from error
        with lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def add_to_manifest(self, videos: list[Video]) -> None:
        """Add the videos to manifest.parquet. Raises OutputError, and DataError as videos() does."""
        import pyarrow as pa
        from pyarrow import parquet

        with self.locked():
            before = self.videos()
            known = {video.id: video for video in (*before, *videos)}
            after = [known[name] for name in sorted(known)]
            if after != before:
                rows = pa.Table.from_pylist([vars(video) for video in after], _schema())
                with new_file(self.manifest, what=_WHAT) as partial:
                    parquet.write_table(rows, partial)

    def videos(self) -> list[Video]:
        """Return the videos of manifest.parquet, ordered by id; [] without it.

        Raises DataError for another file, and for ids and values that no manifest may have.
        """
        if not self.manifest.exists():
            return []
        rows = rows_of(
            self.manifest, _schema(), what="the manifest of a run", optional=("size", "seconds")
        )
        return own_videos(rows, str(self.manifest))

    def sweep(self) -> None:
        """Remove partial files of dead processes; those of running processes stay."""
        for folder in self.folders():
            for partial, _, _ in dead_partials(folder):
                remove(partial)

    def folders(self) -> list[Path]:
        """Return the folders in which a run writes files."""
        folders = [self.root, self.results]
        with contextlib.suppress(OSError):
            folders += [path for path in self.masks.iterdir() if path.is_dir()]
        return folders

    # Unfinished attempts: a killed process cannot report, but its line in attempts/ID remains.

    def tries(self, name: str) -> int:
        try:
            return (self.attempts / name).read_bytes().count(b"\n")
        except OSError:
            return 0

    def tried(self) -> set[str]:
        """Return the ids of all videos with unfinished attempts."""
        try:
            return {path.name for path in self.attempts.iterdir()}
        except OSError:
            return set()

    def begin_try(self, name: str) -> None:
        """Record the start of an attempt. Raises OutputError."""
        try:
            with make_in(self.attempts, lambda: _appended(self.attempts / name)) as file:
                file.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
        except OSError as error:
            raise unwritable(_WHAT, error) from error

    def end_tries(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.attempts / name).unlink()
            self.attempts.rmdir()  # succeeds after the last attempt


def _appended(path: Path) -> BinaryIO:
    """Open a file at its end.

    Raises OSError for a link or a pipe, which a stranger's folder may have.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def _schema() -> Any:
    """Columns of manifest.parquet: the fields of Video."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()), ("uri", pa.string()), ("size", pa.int64()),
            ("start_s", pa.float64()), ("seconds", pa.float64()), ("fps", pa.string()),
        ]
    )  # fmt: skip


def _read_facts(path: Path) -> tuple[str, dict[str, str]]:
    """Return the hash and the facts by name of a run.json."""
    fields = read_json(path, what="run", error=OutputError, hint="choose another -o")
    version_there = fields.integer("format_version", low=1)
    if version_there != FORMAT_VERSION:
        raise fields.error("format_version", got=str(version_there), expected=str(FORMAT_VERSION))
    values: Fields = fields.table("run")
    packages = values.table("versions").values
    found = {n: json.dumps(v) for n, v in values.values.items() if n != "versions"}
    found |= {f"version of {name}": str(v) for name, v in packages.items()}
    return fields.string("hash"), found


def _short(value: str | None) -> str:
    return "none" if value is None else value[:40]
