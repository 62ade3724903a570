"""Engine ray: Ray Data distributes videos to actors with one model each, locally or on a cluster.

Only paths pass through Ray. Workers read videos and write masks themselves, so OUT and local videos
must be on a file system that all nodes share.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from save_deploy.errors import BackendError, BundleError, SaveDeployError
from save_deploy.partials import living_partials
from save_deploy.progress import listen_for_interrupts, listens_for_interrupts
from save_deploy.runtime.bulk.ledger import Result
from save_deploy.runtime.bulk.place import Place
from save_deploy.runtime.bulk.videos import Video
from save_deploy.runtime.bulk.worker import Model, Task, Worker, stopped_by
from save_deploy.runtime.session import GPU_BACKENDS

_TASKS = 10_000  # videos per dataset: Ray Data keeps metadata of every block
_STORE_BYTES = 128 * 2**20  # object store of a local Ray; paths need little
_ENDING_S = 10.0  # time for killed workers to release their locks


class RayEngine:
    """Engine that runs models in Ray actors."""

    def __init__(
        self,
        task: Task,
        actors: int | None,
        threads_per_actor: int | None,
        address: str | None,
    ) -> None:
        """address: address of a cluster; None starts a local Ray.

        Raises the errors of load(), and BackendError if the cluster cannot be joined or has too few
        CPUs for one actor.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray
        import ray.data

        self._ray, self.address = ray, address
        self._unfinished: dict[str, Video] = {}
        _join(ray, address)
        try:
            cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
            on_gpu = gpus > 0 and task.backend in ("auto", *GPU_BACKENDS)
            threads = threads_per_actor or task.threads or 1
            room = gpus if on_gpu else max(1, (cpus - 1) // threads)  # one CPU stays for reading
            self.actors = actors or room
            self.least = min(self.actors, gpus if on_gpu else max(1, cpus // threads))
            self.task = replace(task, threads=threads)
            self._needs: dict[str, Any] = {"num_cpus": threads, "num_gpus": int(on_gpu)}
            if cpus < threads:
                raise BackendError(
                    "too few CPUs for an actor", got=f"{cpus} CPUs in the cluster",
                    expected=f"{threads} for its threads", hint="--threads-per-actor 1",
                )  # fmt: skip
            self.model = self._probed()
        except BaseException:
            self.close()
            raise
        self.how = f"Ray, up to {self.actors} actors, {threads} CPUs each"

    def _probed(self) -> Model:
        """Load the model in a worker and return it; the driver may have other hardware or backends."""
        found = self._ray.get(
            self._ray.remote(max_retries=0, **self._needs)(_probe).remote(self.task)
        )
        if isinstance(found, Model):
            return found
        text, code = found
        error = SaveDeployError(text)
        error.exit_code = code
        raise error

    def run(self, videos: list[Video], run: str) -> Generator[Result, None, None]:
        """Mask every video once and yield the results in order of completion.

        If an error of a worker ends the run, the last result has status STOPPED.
        """
        self._unfinished = {video.id: video for video in videos}
        for start in range(0, len(videos), _TASKS):
            for result in self._run(videos[start : start + _TASKS], run):
                self._unfinished.pop(result.video.id, None)
                yield result

    def _run(self, videos: list[Video], run: str) -> Generator[Result, None, None]:
        data = self._ray.data
        rows = [{"video": video.to_json()} for video in videos]
        done = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(self.task, self.model, run),
            batch_size=1,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(min_size=self.least, max_size=self.actors),
            **self._needs,
        )
        for row in done.iter_rows():
            yield Result.from_json(row["result"])

    def close(self) -> None:
        """End the actors. Attempts that are interrupted by this do not count."""
        if not self._ray.is_initialized():
            return
        self._ray.shutdown()
        if not self._unfinished:
            return
        place, began = Place(self.task.out), time.monotonic()
        while living_partials(place.folders()) and time.monotonic() - began < _ENDING_S:
            time.sleep(0.1)
        for name in place.tried() & set(self._unfinished):
            place.end_tries(name)


def _join(ray: Any, address: str | None) -> None:
    listening = listens_for_interrupts()  # ray.init replaces our signal handlers
    own: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        # workers import from the driver's current folder, which may contain untrusted modules
        with contextlib.chdir(os.sep):
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else own),
            )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise BackendError(
            "Ray cannot be started" if address is None else "the Ray cluster cannot be joined",
            got=" ".join(str(error).split())[:300],
            expected="a cluster of this version of Ray" if address else "a local Ray",
            hint="--engine local" if address is None else "ray status --address ADDRESS",
        ) from error
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # Ray's file handler is kept
            handler.setLevel(logging.CRITICAL)
    if listening:
        listen_for_interrupts()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def _probe(task: Task) -> Model | tuple[str, int]:
    """Run in a worker: return its model, or the text and exit code of its error."""
    try:
        worker = Worker(task)
    except SaveDeployError as error:
        return str(error), error.exit_code
    worker.close()
    return worker.model


class _Actor:
    """Actor that loads its model with the first video, so that an error is returned as a row."""

    def __init__(self, task: Task, model: Model, run: str) -> None:
        self.task, self.model, self.hash = task, model, run
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        videos = [Video.from_json(str(text)) for text in batch["video"]]
        return {"result": [self._result(video).to_json() for video in videos]}

    def _result(self, video: Video) -> Result:
        try:
            if self.worker is None:
                self.worker = Worker(self.task)
                _require_same(self.worker.model, self.model)
            return self.worker.mask(video, self.hash)
        except SaveDeployError as error:
            return stopped_by(video, error)


def _require_same(found: Model, wanted: Model) -> None:
    """Raise if this worker would produce other masks than the first one."""
    if found.bundle != wanted.bundle:
        raise BundleError(
            "the bundle changed during the run",
            got=f"manifest {found.bundle[:12]}...",
            expected=f"{wanted.bundle[:12]}...",
            hint="restore it and run the same command again, or choose another -o",
        )
    if found != wanted:
        raise BackendError(
            "nodes of the cluster have different backends or versions",
            got=f"{found.backend} with {found.versions}",
            expected=f"{wanted.backend} with {wanted.versions}",
            hint="--backend onnxruntime, and the same packages on every node",
        )
