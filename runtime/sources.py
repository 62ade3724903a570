"""Kind of an input: a video, a picture with its sound, many videos, or a live source."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

from save_deploy.data.pictures import is_picture
from save_deploy.errors import DataError, OutputError
from save_deploy.partials import make_in, unwritable
from save_deploy.runtime.bulk.fetch import FULL, local_copy
from save_deploy.runtime.bulk.videos import SUFFIXES, is_many, is_pattern, is_remote
from save_deploy.runtime.live.place import DEVICES

EXPECTED = "a video, a picture and a sound, a folder, a pattern, a URL, or - for standard input"
RUNS = "runs"  # the folder of runs without -o
STDIN = "-"
_LIVE = re.compile(rf"camera(:\d+)?|(rtsps?|rtmps?|srt|udp|rtp):/.+|({'|'.join(DEVICES)}):.+")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/+[^/?#]*", re.IGNORECASE)
_PICTURES, _SOUNDS = (
    (".png", ".jpg", ".jpeg"),
    (".wav", ".flac", ".ogg", ".mp3"),
)  # as they are named
_LONGEST = 80  # characters of a name


class Kind(Enum):
    FILM = "film"
    STILL = "still"
    MANY = "many"
    LIVE = "live"


def kind_of(sources: Sequence[str], *, folder: bool = False) -> Kind:
    """Return the kind of the inputs on a command line.

    folder: the output is a folder, so the URL of one video is a run over many.
    Raises DataError for missing inputs and for inputs that do not go together.
    """
    if not sources:
        raise DataError("which video?", got="none", expected=f"{EXPECTED}; or --manifest FILE")
    if len(sources) == 2 and _is_still(*sources):
        return Kind.STILL
    if len(sources) > 1:
        for word in sources:
            if word == STDIN or is_many(word) or is_picture(Path(word)):
                raise DataError(
                    "sources that do not go together",
                    got=" ".join(sources)[:300],
                    expected="a picture and then its sound, or several video files",
                )
        return Kind.MANY
    (word,) = sources
    if is_picture(Path(word)):
        raise DataError(
            "a picture without a sound",
            got=word,
            expected="a sound file or a film after it: what is masked is what is heard",
        )
    if word == STDIN:
        return Kind.FILM
    if not os.path.exists(word) and _LIVE.fullmatch(word):
        return Kind.LIVE
    if not folder and _is_film_url(word):
        return Kind.FILM
    return Kind.MANY if is_many(word) else Kind.FILM


def _is_still(first: str, second: str) -> bool:
    """Return True for a picture and its sound, or what is named so: their reader says what is wrong."""
    if is_picture(Path(first)):
        return True
    if is_many(first) or is_many(second) or STDIN in (first, second) or is_picture(Path(second)):
        return False
    return first.lower().endswith(_PICTURES) or second.lower().endswith(_SOUNDS)


def _is_film_url(word: str) -> bool:
    """Return True for the URL of one video, on the web (with an optional query) or in a store."""
    if not is_remote(word):
        return False
    url = urlsplit(word)
    path = url.path if url.scheme in ("http", "https") else word
    return not is_pattern(path) and path.lower().endswith(SUFFIXES)


def name_of(source: str) -> str:
    """Return the name of a run: the file name without suffix, or the name of the folder or pattern's
    folder."""
    if source == STDIN:
        return "stdin"
    address = _ADDRESS.match(source) is not None and not os.path.exists(source)
    # without host, user, password and query: a name is printed, and a folder is listed
    place = (
        re.sub(r"[?#].*", "", _ADDRESS.sub("", source, count=1))
        if address
        else os.path.abspath(source)
    )
    fixed = [part for part in re.split(r"[/\\]", place) if part and not is_pattern(part)]
    name = fixed[-1] if fixed else ""
    if not os.path.isdir(source) and fixed and place.endswith(name):
        name = os.path.splitext(name)[0]
    plain = re.sub(r"[^\w.+-]+", "-", name)[:_LONGEST].strip("-.")
    return plain or "run"


@contextlib.contextmanager
def run_folder(name: str) -> Iterator[Path]:
    """Create and yield a new folder runs/NAME, runs/NAME-2, ...; remove it if it stays empty.

    Raises OutputError.
    """
    folder = _made(Path(RUNS), name)
    try:
        yield folder
    finally:
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _made(parent: Path, name: str) -> Path:
    def make() -> Path:
        number = 1
        while True:
            folder = parent / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
            number += 1

    try:
        return make_in(parent, make)
    except OSError as error:
        raise OutputError(
            "no folder for the outputs can be made here",
            got=str(error),
            expected=f"a current folder in which {RUNS}/ can be made",
            hint="add -o FILE",
        ) from error


@contextlib.contextmanager
def local_film(source: str) -> Iterator[Path]:
    """Yield the path of a local video, or of a temporary copy of standard input or of a URL.

    Raises DataError for an input that cannot be read, OutputError if the copy does not fit on disk.
    """
    if source != STDIN:
        with local_copy(source) as path:
            yield path
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError(
            "standard input is a terminal", got=STDIN, expected="a film: cat FILM | save-run ... -"
        )
    with tempfile.TemporaryDirectory(prefix="save-deploy-") as folder:
        path = Path(folder) / "stdin"
        try:
            with path.open("wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy, 1 << 20)
        except OSError as error:
            if error.errno in FULL:
                raise unwritable("the copy of standard input", error) from error
            raise DataError("standard input cannot be read", got=str(error)) from error
        if not path.stat().st_size:
            raise DataError("standard input is empty", got="0 bytes", expected="a film")
        yield path
