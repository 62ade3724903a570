"""Worker of every engine: one model that masks videos one by one."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from save_deploy.bundle import MANIFEST, Manifest, sha256_of
from save_deploy.bundle_files import require_unchanged, stamps_of
from save_deploy.errors import BundleError, DataError, ParityError, SaveDeployError
from save_deploy.runtime.bulk.fetch import FetchError, local_copy
from save_deploy.runtime.bulk.film import Film, FilmOptions, Stopped, Target
from save_deploy.runtime.bulk.ledger import DONE, FAILED, STOPPED, Result
from save_deploy.runtime.bulk.masks import frames_done
from save_deploy.runtime.bulk.place import Place, relevant_versions
from save_deploy.runtime.bulk.videos import Video
from save_deploy.runtime.lanes import Lanes, faster_lanes, open_lanes
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.video.source import VideoSource

_PAUSE_S = 0.5  # before the second try of a fetch, twice as long before each next one


@dataclass(frozen=True)
class Task:
    """Task of all workers of a run.

    backend, self_test, trust, threshold: as in load().
    threads: CPU threads per worker. streams: frames at a time, which share the threads; None to
    measure which number is fastest.
    retries: attempts per video.
    """

    bundle: Path
    out: Path
    film: FilmOptions
    backend: str = "auto"
    threads: int | None = None
    streams: int | None = 1
    self_test: bool | None = None
    trust: bool = False
    threshold: float = 0.5
    retries: int = 3


@dataclass(frozen=True)
class Model:
    """Properties of a worker's model that masks depend on. bundle: sha256 of the manifest."""

    bundle: str
    precision: str
    backend: str
    batch: int
    versions: dict[str, str]


class Worker:
    """Loads the model on construction. mask() may be called from several threads, which then share
    its lanes."""

    def __init__(self, task: Task, stop: threading.Event | None = None) -> None:
        """stop: event that ends the whole run. Raises the errors of load()."""
        self.task, self.stop = task, stop or threading.Event()
        manifest = (task.bundle / MANIFEST).read_bytes() if task.bundle.is_dir() else b""
        files = Manifest.read(task.bundle).files
        self._stamps = stamps_of(task.bundle, [MANIFEST, *files])
        self.lanes = self._opened()
        require_unchanged(task.bundle, self._stamps)
        pipeline = self.lanes.first
        self.model = Model(
            hashlib.sha256(manifest).hexdigest(),
            pipeline.precision,
            pipeline.backend,
            pipeline.batch,
            relevant_versions(pipeline.backend),
        )
        self.place = Place(task.out)

    def _opened(self) -> Lanes:
        task = self.task

        def loaded(threads: int | None, streams: int) -> SavePipeline:
            return load(
                task.bundle,
                backend=task.backend,
                threads=threads,
                streams=streams,
                self_test=task.self_test,
                trust=task.trust,
                threshold=task.threshold,
                measured=False,  # workers on several machines must choose alike
            )

        if task.streams is not None:
            return open_lanes(loaded, task.threads, task.streams)
        return faster_lanes(loaded, task.bundle, task.backend, task.threads)

    def mask(self, video: Video, run: str) -> Result:
        """Write the mask file of a video, unless it exists already.

        run: hash of the run.
        An error of the video, or a crash in every allowed attempt, is returned as a failed result.
        Errors that concern every video are raised: OutputError, BundleError, BackendError. Stopped
        and KeyboardInterrupt leave no partial file.
        """
        path, place = self.place.mask_file(video.id), self.place
        done = frames_done(path, run=run, video=video.hash)
        if done is not None:
            return Result(video, DONE, frames=done, fresh=False)
        before = place.tries(video.id)
        if before >= self.task.retries:
            error = f"the process crashed {before} times while it processed this video"
            return Result(video, FAILED, error=error, attempts=before, host=socket.gethostname())
        place.begin_try(video.id)
        try:
            result = self._tried(video, Target(path, run, video.hash, video.id), before + 1)
        finally:  # after kill -9 the line remains and counts as an attempt
            place.end_tries(video.id)
        return result

    def _tried(self, video: Video, target: Target, attempts: int) -> Result:
        began, host = time.perf_counter(), socket.gethostname()
        while True:
            try:
                with local_copy(video.uri) as path:
                    film = Film(VideoSource(path, video.section), self.task.film, self.stop)
                    film(self.lanes, target, before_end=self._require_bundle)
            except (DataError, ParityError) as error:
                if isinstance(error, FetchError) and attempts < self.task.retries:
                    if self.stop.wait(_PAUSE_S * 2 ** (attempts - 1)):
                        raise Stopped from None
                    attempts += 1
                    continue
                return Result(
                    video, FAILED, error=_line(error), attempts=attempts, host=host,
                    wall_s=_since(began),
                )  # fmt: skip
            except (SaveDeployError, Stopped):
                raise
            except Exception as error:  # unexpected error of a library
                text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                return Result(
                    video, FAILED, error=text, attempts=attempts, host=host, wall_s=_since(began)
                )
            return Result(
                video, DONE, frames=film.frames, wall_s=_since(began), host=host,
                sha256=sha256_of(target.path), attempts=attempts, times=film.times,
            )  # fmt: skip

    def _require_bundle(self) -> None:
        """Raise BundleError if the bundle on disk changed after it was loaded."""
        try:
            require_unchanged(self.task.bundle, self._stamps)
        except BundleError as error:
            raise BundleError(
                "the bundle changed during the run",
                got=error.got,
                expected="the bundle at the start of the run",
                hint="restore it and run the same command again, or choose another -o",
            ) from None

    def close(self) -> None:
        self.lanes.close()


def stopped_by(video: Video, error: SaveDeployError) -> Result:
    """Return an error that ends the run as a result, for engines with several processes."""
    return Result(video, STOPPED, error=str(error), exit_code=error.exit_code)


def _line(error: SaveDeployError) -> str:
    """Return what and got of an error in one line."""
    text = f"{error.what}: {error.got}" if error.got else error.what
    return " ".join(text.split())[:500]


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 3)
