"""Videos of a run: the files of a folder or a pattern, or the rows of a manifest.

Places are local paths or URLs that fsspec opens. Nothing is decoded here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from save_deploy.errors import DataError
from save_deploy.extras import named_extras
from save_deploy.runtime.bulk.options import Shard
from save_deploy.runtime.video.options import Section, parse_fps

SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
    ".wmv", ".flv", ".ogv", ".3gp",
)  # fmt: skip
COLUMNS = ("id", "uri", "size", "start_s", "seconds", "fps")
MAX_ID_BYTES = 180  # ids are used as file names
MAX_MANIFEST_BYTES = 2 * 2**30
_MAX_SIZE = 2**53  # bytes of a video
_PATTERN = "*?["


@dataclass(frozen=True)
class Video:
    """One video, or a section of a video.

    size: bytes; None if unknown.
    fps: text as for --fps.
    """

    id: str
    uri: str
    size: int | None = None
    start_s: float = 0.0
    seconds: float | None = None
    fps: str = "native"

    @property
    def section(self) -> Section:
        return Section(self.start_s, self.seconds, parse_fps(self.fps))

    @property
    def hash(self) -> str:
        """Hash of all fields. A mask file with another hash belongs to another video."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Video:
        """Inverse of to_json."""
        return cls(**json.loads(text))


def is_many(place: str) -> bool:
    """Return True unless VIDEO is one local file: for a folder, a pattern, or a URL of fsspec."""
    if os.path.isfile(place):
        return False
    return os.path.isdir(place) or is_remote(place) or is_pattern(place)


def is_pattern(place: str) -> bool:
    return any(sign in place for sign in _PATTERN)


def is_remote(place: str) -> bool:
    return "://" in place or "::" in place


def in_shard(videos: Iterable[Video], shard: Shard) -> list[Video]:
    """Return the videos of a shard. The split depends only on ids, so all shards agree on it."""
    return [v for v in videos if int(id_hash(v.id)[:12], 16) % shard.count == shard.index]


def id_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@named_extras()
def found_in(
    place: str, section: Section, *, without: Path, more: Sequence[str] = ()
) -> list[Video]:
    """Return the videos in a folder (recursive) or of a pattern, ordered by id.

    An id is the path relative to the folder; it has the suffix only if two files differ by it alone.
    A link to a file is that file; folders behind links are not searched.
    without: a folder whose files are skipped, also those that are reached through a link.
    more: further local files; `place` is then the first one.
    Raises DataError for a place that cannot be read, contains no video, or has two videos with one
    id.
    """
    import fsspec

    try:
        if more:
            files = fsspec.filesystem("file")
            paths = dict.fromkeys(os.path.abspath(each) for each in (place, *more))
            listed = {path: files.info(path) for path in paths}
            root = os.path.commonpath([os.path.dirname(path) for path in paths])
            return _videos_of(listed, root, place, section, files, without)
        files, root = fsspec.core.url_to_fs(os.path.abspath(place) if _is_local(place) else place)
        if any(sign in root for sign in _PATTERN) and not files.isdir(root):
            listed, root = files.glob(root, detail=True), _fixed_part(root)
        elif files.isdir(root):
            listed = files.find(root, detail=True)
        else:
            listed = {root: files.info(root)}
            root = posixpath.dirname(root)
    except Exception as error:  # every file system raises its own types
        raise unreadable(place, error) from error
    return _videos_of(listed, root, place, section, files, without)


def _videos_of(
    listed: Mapping[str, Any], root: str, place: str, section: Section, files: Any, without: Path
) -> list[Video]:
    from fsspec.implementations.local import LocalFileSystem

    local, skipped = isinstance(files, LocalFileSystem), os.path.realpath(without)
    videos = {
        name: entry for name, entry in listed.items()
        if posixpath.splitext(name)[1].lower() in SUFFIXES
        and not any(part.startswith(".") for part in _below(name, root).split("/"))
        and (_is_file(name, entry) if local else entry["type"] == "file")
        and not (local and Path(os.path.realpath(name)).is_relative_to(skipped))
    }  # fmt: skip
    if not videos:
        raise DataError(
            "no video in this place", got=place, expected=f"files with suffix {', '.join(SUFFIXES)}"
        )
    about = _about(section)
    ids = _ids_of([_below(name, root) for name in videos])
    made = [
        Video(i, name if _is_local(place) else files.unstrip_protocol(name), entry["size"], **about)
        for i, (name, entry) in zip(ids, videos.items(), strict=True)
    ]
    return _checked(made, place)


@named_extras()
def read_manifest(place: str, section: Section) -> list[Video]:
    """Return the videos of a CSV or parquet file, ordered by id.

    section: default of start_s, seconds and fps for rows without them.
    A uri that is neither a URL nor an absolute path is relative to the manifest's folder.
    Raises DataError for a file that cannot be read or lacks the columns id and uri, for an id that is
    empty, invalid or used twice, for a value out of range, and for a uri outside the folder.
    """
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(os.path.abspath(place) if _is_local(place) else place)
        size = files.info(path)["size"] or 0
        if size > MAX_MANIFEST_BYTES:
            raise DataError(
                "the manifest is too large", got=f"{place}: {size} bytes",
                expected=f"at most {MAX_MANIFEST_BYTES}", hint="split it",
            )  # fmt: skip
        content = files.cat_file(path)
    except DataError:
        raise
    except Exception as error:  # every file system raises its own types
        raise unreadable(place, error) from error
    rows = _parquet(content, place) if path.lower().endswith(".parquet") else _csv(content, place)
    folder = posixpath.dirname(path)
    folder = folder if _is_local(place) else files.unstrip_protocol(folder)
    videos = [_of_row(row, f"{place} row {n}", folder, section) for n, row in enumerate(rows, 1)]
    if not videos:
        raise DataError("the manifest has no rows", got=place, expected="one row per video")
    return _checked(videos, place)


def own_videos(rows: Iterable[Mapping[str, Any]], place: str) -> list[Video]:
    """Return the videos of a run's own manifest, ordered by id. rows: of the types of Video's fields.

    Raises DataError for ids as read_manifest does, and for values out of range.
    """
    videos = []
    for n, row in enumerate(rows, 1):
        origin, video = f"{place} row {n}", Video(**row)
        _text(row, "uri", origin)
        if video.size is not None:
            _number(video.size, f"{origin}: size", high=_MAX_SIZE)
        _require_section(video, origin)
        videos.append(video)
    return _checked(videos, place)


def unreadable(place: str, error: Exception) -> DataError:
    """Return the DataError for an error of a file system or store."""
    text = " ".join(str(error).split())[:300]
    return DataError(
        "this place cannot be read",
        got=f"{place}: {type(error).__name__}: {text}".rstrip(": "),
        expected="a file, a folder or a pattern; for a bucket its fsspec package and read permission",
    )


def _of_row(row: Mapping[str, Any], origin: str, folder: str, default: Section) -> Video:
    uri = _text(row, "uri", origin)
    about = _about(default)
    for key in ("start_s", "seconds"):
        if (given := row.get(key)) not in (None, ""):
            about[key] = _number(given, f"{origin}: {key}")
    if (given := row.get("fps")) not in (None, ""):
        about["fps"] = _fps_text(given)
    size = row.get("size")
    size = None if size in (None, "") else int(_number(size, f"{origin}: size", high=_MAX_SIZE))
    video = Video(_text(row, "id", origin), _place(uri, folder, origin), size, **about)
    _require_section(video, origin)
    if size is None and _is_local(video.uri) and os.path.isfile(video.uri):
        return replace(video, size=os.path.getsize(video.uri))
    return video


def _require_section(video: Video, origin: str) -> None:
    try:
        _ = video.section
    except DataError as error:
        raise DataError(f"{origin}: {error.what}", got=error.got, expected=error.expected) from None


def _place(uri: str, folder: str, origin: str) -> str:
    if "\0" in uri:
        raise DataError(f"{origin}: uri", got=repr(uri)[:200], expected="a path or a URL")
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if is_remote(uri) or posixpath.isabs(uri):
        return uri
    inside = posixpath.normpath(uri)
    if inside.startswith("../") or inside in ("..", "."):
        raise DataError(
            f"{origin}: the uri is outside the manifest's folder", got=uri[:200],
            expected="a path inside it, an absolute path or a URL",
        )  # fmt: skip
    return posixpath.join(folder, inside)


def _checked(videos: list[Video], place: str) -> list[Video]:
    """Return the videos ordered by id. Raises DataError for invalid and for equal ids."""
    videos = sorted(videos, key=lambda video: video.id)
    for video in videos:
        name = video.id
        strange = not name.isprintable() or name.startswith(".") or set(name) & set('/\\:*?"<>|')
        if not name.strip() or strange or len(name.encode()) > MAX_ID_BYTES:
            raise DataError(
                "id is not a valid file name", got=f"{name[:200]!r} in {place}",
                expected=f'1 to {MAX_ID_BYTES} bytes, printable, none of /\\:*?"<>|, no leading dot',
            )  # fmt: skip
    for one, next_one in itertools.pairwise(videos):
        if one.id == next_one.id:
            raise DataError(
                "two videos with one id", got=f"{one.id}: {one.uri} and {next_one.uri}",
                expected="different ids", hint="set ids in a --manifest",
            )  # fmt: skip
    return videos


def _ids_of(names: list[str]) -> list[str]:
    """Return ids of relative paths: folders joined by __, with suffix only where ids would be equal."""
    stems = [posixpath.splitext(name)[0].replace("/", "__") for name in names]
    seen = {stem: stems.count(stem) for stem in stems} if len(set(stems)) < len(stems) else {}
    return [
        name.replace("/", "__") if seen.get(stem, 1) > 1 else stem
        for name, stem in zip(names, stems, strict=True)
    ]


def _about(section: Section) -> dict[str, Any]:
    fps = "native" if section.fps is None else _fps_text(section.fps)
    return {"start_s": section.start_s, "seconds": section.seconds, "fps": fps}


def _fps_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value).strip()


def _text(row: Mapping[str, Any], key: str, origin: str) -> str:
    value = row.get(key)
    if value is None or isinstance(value, (bytes, bool, float)) or not str(value).strip():
        raise DataError(f"{origin}: {key}", got="nothing" if not value else repr(value)[:80],
                        expected="a text")  # fmt: skip
    return str(value)


def _number(value: object, where: str, *, high: float = math.inf) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or not 0 <= number <= high:
        most = "or more" if high == math.inf else f"to {high}"
        raise DataError(where, got=repr(value)[:80], expected=f"a number, 0 {most}")
    return number


def _csv(content: bytes, place: str) -> Iterator[dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the manifest is not UTF-8", got=f"{place}: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        _require_columns(reader.fieldnames or (), place)
        yield from reader
    except csv.Error as error:
        raise DataError("the manifest is not a CSV file", got=f"{place}: {error}") from None


def _parquet(content: bytes, place: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
        _require_columns(file.schema_arrow.names, place)
        wanted = [name for name in file.schema_arrow.names if name in COLUMNS]
        for batch in file.iter_batches(columns=wanted):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError("the manifest is not a parquet file", got=f"{place}: {error}") from None


def _require_columns(names: Iterable[str], place: str) -> None:
    found = list(names)
    if missing := [name for name in ("id", "uri") if name not in found]:
        raise DataError(
            f"the manifest has no column {' and no '.join(missing)}",
            got=f"{place}: {', '.join(map(str, found))[:200]}",
            expected="id and uri, optionally start_s, seconds, fps",
        )


def _is_local(place: str) -> bool:
    return not is_remote(place)


def _below(name: str, root: str) -> str:
    return posixpath.relpath(name, root) if root else name


def _fixed_part(pattern: str) -> str:
    """Return the folder that contains all matches of a pattern."""
    first = min(pattern.index(sign) for sign in _PATTERN if sign in pattern)
    return posixpath.dirname(pattern[:first])


def _is_file(name: str, entry: Mapping[str, Any]) -> bool:
    """Return True for a local file and for a link to one, which fsspec lists as "other"."""
    return entry["type"] == "file" or (entry["islink"] and os.path.isfile(name))
