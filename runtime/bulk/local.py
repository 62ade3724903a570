"""Engine local: models in threads of this process.

Each model processes one video, and one additional video is read ahead, so that no model waits while
the next video is opened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np

from save_deploy.bundle import GRAPHS
from save_deploy.config import AUDIO_DIM
from save_deploy.machine import allowed_cores, available_bytes
from save_deploy.runtime.bulk.ledger import Result
from save_deploy.runtime.bulk.videos import Video
from save_deploy.runtime.bulk.worker import Model, Task, Worker
from save_deploy.runtime.session import GPU_BACKENDS
from save_deploy.runtime.session.open import cpu_bytes

_MEASURED_S = 1.0  # duration of the measurement of each division of the cores
_MOST_MEASURED = 8  # models


class LocalEngine:
    """Engine that runs models in threads of this process."""

    def __init__(self, task: Task, actors: int | None, threads_per_actor: int | None) -> None:
        """task.threads: threads of all models together. Raises the errors of load()."""
        self.task, self.stop = task, threading.Event()
        self.total = task.threads or allowed_cores()
        self.fixed = actors is not None or threads_per_actor is not None
        n = actors or max(1, self.total // threads_per_actor if threads_per_actor else 1)
        self.workers = self._opened(n, threads_per_actor or max(1, self.total // n))
        self.how = f"{n} model{'s' * (n > 1)}, {self.workers[0].task.threads} threads each"

    @property
    def model(self) -> Model:
        return self.workers[0].model

    def run(self, videos: list[Video], run: str) -> Generator[Result, None, None]:
        """Mask every video once and yield the results in order of completion.

        Raises the errors of Worker.mask. After an error or an interrupt no partial output remains.
        """
        tried = self.workers[0].place.tried()
        suspects = [video for video in videos if video.id in tried]
        calm = [video for video in videos if video.id not in tried]
        if not self.fixed and len(calm) > 1:
            self._choose()
        in_hand = len(self.workers) + 1
        yield from self._run(calm, run, in_hand)
        yield from self._run(
            suspects, run, 1
        )  # one at a time, because each of them may crash the process

    def _run(self, videos: list[Video], run: str, in_hand: int) -> Generator[Result, None, None]:
        waiting, running = iter(videos), dict[Future[Result], Worker]()
        load = dict.fromkeys(range(len(self.workers)), 0)
        with ThreadPoolExecutor(in_hand) as pool:
            try:
                while True:
                    while len(running) < in_hand and (video := next(waiting, None)) is not None:
                        freest = min(load, key=lambda i: load[i])
                        load[freest] += 1
                        future = pool.submit(self.workers[freest].mask, video, run)
                        running[future] = self.workers[freest]
                    if not running:
                        return
                    done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        load[self.workers.index(running.pop(future))] -= 1
                        yield future.result()
            finally:
                self.stop.set() if running else None

    def _choose(self) -> None:
        """Measure one model with all threads and several with one each; keep the faster choice."""
        n = min(self.total, _MOST_MEASURED)
        if n < 2 or self.model.backend in GPU_BACKENDS or not self._has_room(n):
            return
        single = _frames_per_s(self.workers)
        others = self._opened(n, max(1, self.total // n))
        several = _frames_per_s(others)
        kept, dropped = (others, self.workers) if several > single else (self.workers, others)
        for worker in dropped:
            worker.close()
        self.workers = kept
        threads = kept[0].task.threads
        self.how = (
            f"{len(kept)} model{'s' * (len(kept) > 1)}, {threads} thread{'s' * (threads != 1)} each: "
            f"measured {single:.1f} frames/s with 1, {several:.1f} with {n}"
        )

    def _has_room(self, n: int) -> bool:
        needed = sum(cpu_bytes(self.task.bundle / name) for name in GRAPHS)
        return n * needed < available_bytes() / 2

    def _opened(self, n: int, threads: int) -> list[Worker]:
        task = replace(self.task, threads=threads)
        return [Worker(task, self.stop) for _ in range(n)]

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def _frames_per_s(workers: list[Worker]) -> float:
    """Measure the frames/s of the models alone, all running in parallel."""
    side, batch = workers[0].pipeline.config.res, workers[0].model.batch
    images = np.zeros((batch, side, side, 3), np.uint8)
    embeddings = np.zeros((batch, AUDIO_DIM), np.float32)

    def count(worker: Worker) -> int:
        worker.pipeline.run(images, embeddings)  # the first call allocates
        began, n = time.perf_counter(), 0
        while time.perf_counter() - began < _MEASURED_S:
            worker.pipeline.run(images, embeddings)
            n += batch
        return round(n / (time.perf_counter() - began) * 1000)

    with ThreadPoolExecutor(len(workers)) as pool:
        return sum(pool.map(count, workers)) / 1000
