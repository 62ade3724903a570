"""A run over many videos: checks, choice of the engine, results."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from save_deploy.bundle import sha256_of
from save_deploy.errors import DataError, OutputError, SaveDeployError
from save_deploy.extras import named_extras
from save_deploy.progress import progress, raise_if_interrupted, resumable
from save_deploy.runtime.bulk.film import FilmOptions
from save_deploy.runtime.bulk.ledger import DONE, FAILED, STOPPED, Ledger, Result
from save_deploy.runtime.bulk.local import LocalEngine
from save_deploy.runtime.bulk.options import BulkOptions
from save_deploy.runtime.bulk.place import Place, RunFacts
from save_deploy.runtime.bulk.videos import Video, found_in, in_shard, read_manifest
from save_deploy.runtime.bulk.worker import Model, Task
from save_deploy.runtime.video.masking import split_of
from save_deploy.runtime.video.options import OutputOptions
from save_deploy.runtime.video.overlay import color_of


class Engine(Protocol):
    """Engine that runs the models. how: description of models and threads for the user."""

    how: str

    @property
    def model(self) -> Model: ...

    def run(self, videos: list[Video], run: str) -> Generator[Result, None, None]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class BulkResult:
    """Result of a run, for the videos of its shard.

    done: number of videos with masks; before: those of them made by an earlier run.
    failed: rows of the failed videos.
    frames, seconds: frames masked by this run and its duration.
    times: seconds by stage; stages run in parallel.
    how: the engine's description.
    """

    done: int
    before: int
    failed: tuple[dict[str, Any], ...]
    frames: int
    seconds: float
    times: dict[str, float]
    how: str

    @property
    def split(self) -> str:
        """Time per frame by stage, see split_of."""
        return split_of(self.times, self.frames)


class BulkRun:
    """One run. Create it before loading a model: the constructor checks videos and options."""

    @named_extras()
    def __init__(self, places: Sequence[str], bulk: BulkOptions, outputs: OutputOptions) -> None:
        """places: a folder or pattern, or videos; none with bulk.manifest. Raises DataError,
        OutputError."""
        import pyarrow  # noqa: F401
        import pycocotools  # noqa: F401

        if bulk.engine == "ray":
            import ray  # noqa: F401

        self.bulk, self.outputs = bulk, outputs
        self.place = Place(_out_of(outputs))
        color_of(outputs.color)
        if bool(places) == (bulk.manifest is not None):
            raise DataError(
                "give either VIDEO or --manifest",
                got=f"{places[0]} and --manifest {bulk.manifest}" if places else "none",
                expected="a folder, a pattern or a video, or --manifest FILE",
            )
        if bulk.manifest is not None:
            self.videos = read_manifest(bulk.manifest, outputs.section)
        else:
            self.videos = found_in(
                places[0], outputs.section, without=self.place.root, more=places[1:]
            )

    @named_extras()
    def __call__(self, task: Task) -> BulkResult:
        """Mask the videos. task: bundle and its placement.

        Raises OutputError for a folder of another run, and every error that ends a run. Finished
        videos remain, and the same call resumes the run.
        """
        task = replace(task, out=self.place.root, film=self._film(), retries=self.bulk.retries)
        engine = self._engine(task)
        with contextlib.closing(engine):
            facts = self._facts(engine.model, task.threshold)
            self.place.open(facts, force=self.outputs.force)
            self.place.add_to_manifest(self.videos)
            mine = in_shard(self.videos, self.bulk.shard)
            self.place.sweep()
            try:
                with resumable(lambda: True), Ledger(self.place) as ledger:
                    found = self._run(engine, facts.hash, mine, ledger)
                    # a process killed between the last two steps of a video leaves its attempt
                    for name in self.place.tried() & {video.id for video in mine}:
                        self.place.end_tries(name)
                    return found
            finally:
                engine.close()
                self.place.sweep()

    def _engine(self, task: Task) -> Engine:
        bulk = self.bulk
        if bulk.engine == "ray":
            from save_deploy.runtime.bulk.ray_engine import RayEngine

            return RayEngine(task, bulk.actors, bulk.threads_per_actor, bulk.address)
        return LocalEngine(task, bulk.actors, bulk.threads_per_actor)

    def _film(self) -> FilmOptions:
        bulk, outputs = self.bulk, self.outputs
        return FilmOptions(
            form=bulk.form,
            masks_at=bulk.masks_at,
            resize=bulk.resize,
            color=outputs.color if bulk.form == "video" else "",
            silent=outputs.silent,
        )

    def _facts(self, model: Model, threshold: float) -> RunFacts:
        film, section = self._film(), self.outputs.section
        return RunFacts(
            bundle=model.bundle, precision=model.precision, backend=model.backend,
            batch=model.batch, versions=model.versions, format=film.form, masks_at=film.masks_at,
            resize=film.resize, color=film.color, silent=film.silent, threshold=threshold,
            start_s=section.start_s,
            seconds=section.seconds, fps="native" if section.fps is None else str(section.fps),
        )  # fmt: skip

    def _run(self, engine: Engine, run: str, videos: list[Video], ledger: Ledger) -> BulkResult:
        began, count, times = time.monotonic(), _Count(), defaultdict[str, float](float)
        with (
            progress("videos", len(videos)) as advance,
            contextlib.closing(engine.run(videos, run)) as results,
        ):
            for result in results:
                if result.status == STOPPED:
                    raise _Ended(result)
                self._record(result, ledger)
                count.add(result)
                for stage, seconds in result.times.items():
                    times[stage] += seconds
                rate = count.frames / max(1e-3, time.monotonic() - began)
                advance(f"{len(count.failed)} failed, {rate:.1f} frames/s")
                raise_if_interrupted()
        seconds = time.monotonic() - began
        return BulkResult(
            count.done, count.before, tuple(count.failed), count.frames, seconds, dict(times),
            engine.how,
        )  # fmt: skip

    def _record(self, result: Result, ledger: Ledger) -> None:
        """Add the row of a new result, or the missing row of a mask file from a killed run."""
        video = result.video
        known = ledger.rows.get(video.id)
        if result.status == DONE and not result.fresh:
            if known is not None and known["status"] == DONE and _same(known, video):
                return
            result = replace(result, sha256=sha256_of(self.place.mask_file(video.id)))
        ledger.add(result)
        if result.status == FAILED:
            self.place.end_tries(video.id)


class _Ended(SaveDeployError):
    """Error of a worker in another process."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.error)
        self.exit_code = result.exit_code


@dataclass
class _Count:
    """Counts over the results of a run."""

    done: int = 0
    before: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        self.failed: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        if result.status == FAILED:
            self.failed.append(result.row)
            return
        self.done += 1
        self.before += not result.fresh
        self.frames += result.frames if result.fresh else 0


def _same(row: dict[str, Any], video: Video) -> bool:
    return all(row[key] == getattr(video, key) for key in ("uri", "size", "start_s", "seconds"))


def _out_of(outputs: OutputOptions) -> Path:
    of_one = {"--masks": outputs.masks, "--matte": outputs.matte, "--json": outputs.record}
    given = [name for name, path in of_one.items() if path is not None]
    given += ["--show"] if outputs.show else []
    if given:
        raise DataError(
            "options of a single video",
            got=", ".join(given),
            expected="-o OUT and --format rle, png or video",
        )
    if outputs.out is None:
        raise DataError("nothing to write", expected="a folder", hint="add -o OUT")
    if outputs.out.exists() and not outputs.out.is_dir():
        raise OutputError("not a folder", got=str(outputs.out), expected="a folder for many videos")
    return outputs.out
