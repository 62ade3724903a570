"""Engine local: one model in this process, whose lanes several videos share.

One video more than there are lanes is in hand, so that no lane waits while the next one is opened.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from save_deploy.machine import allowed_cores
from save_deploy.runtime.bulk.ledger import Result
from save_deploy.runtime.bulk.videos import Video
from save_deploy.runtime.bulk.worker import Model, Task, Worker


class LocalEngine:
    """Engine that runs the lanes of one model in threads of this process."""

    def __init__(self, task: Task, actors: int | None, threads_per_actor: int | None) -> None:
        """task.threads: threads of all lanes together. Raises the errors of load()."""
        self.stop = threading.Event()
        total, threads, n = task.threads or allowed_cores(), task.threads, actors
        if n is None and threads_per_actor is not None:
            n = max(1, total // threads_per_actor)
        if n is not None:
            threads = n * (threads_per_actor or max(1, total // n))
        self.worker = Worker(replace(task, threads=threads, streams=n), self.stop)
        self.how = self.worker.lanes.how

    @property
    def model(self) -> Model:
        return self.worker.model

    def run(self, videos: list[Video], run: str) -> Generator[Result, None, None]:
        """Mask every video once and yield the results in order of completion.

        Raises the errors of Worker.mask. After an error or an interrupt no partial output remains.
        """
        tried = self.worker.place.tried()
        suspects = [video for video in videos if video.id in tried]
        calm = [video for video in videos if video.id not in tried]
        yield from self._run(calm, run, self.worker.lanes.n + 1)
        yield from self._run(
            suspects, run, 1
        )  # one at a time, because each of them may crash the process

    def _run(self, videos: list[Video], run: str, in_hand: int) -> Generator[Result, None, None]:
        waiting, running = iter(videos), set[Future[Result]]()
        with ThreadPoolExecutor(in_hand) as pool:
            try:
                while True:
                    while len(running) < in_hand and (video := next(waiting, None)) is not None:
                        running.add(pool.submit(self.worker.mask, video, run))
                    if not running:
                        return
                    done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                self.stop.set() if running else None

    def close(self) -> None:
        self.worker.close()
