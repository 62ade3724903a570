"""Frames masked at the same time: one model with all threads, or several streams with fewer each.

A frame on its own is fastest with all threads. Many frames are often faster two at a time with one
thread each, because no thread waits for another within a frame. Which is faster depends on model,
backend and machine, so it is measured once and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import queue
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import GRAPHS, MANIFEST
from save_deploy.config import AUDIO_DIM
from save_deploy.machine import allowed_cores, available_bytes
from save_deploy.runtime.compare.others import Watch
from save_deploy.runtime.inputs import require_finite
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import GPU_BACKENDS, default_threads
from save_deploy.runtime.session.compiled import keep, read_kept
from save_deploy.runtime.session.measured import measurement_file
from save_deploy.runtime.session.open import cpu_bytes

FEWEST_FRAMES = 100  # of a film, for which the measurement pays
_MOST_STREAMS = 8
_ROUNDS, _BURST_S = 3, 0.15  # of the measurement, each way in turn
Load = Callable[[int | None, int], SavePipeline]  # (threads, streams) -> pipeline
Answer = tuple[NDArray[np.float32], float]  # mask_logits (F,S,S), seconds of the call


class Lanes:
    """Pipelines of one bundle that mask frames at the same time, in threads.

    how: description for the user.
    """

    def __init__(self, pipelines: Sequence[SavePipeline], how: str = "") -> None:
        self.pipelines, self.how = tuple(pipelines), how
        self.first, self.n = self.pipelines[0], len(self.pipelines)
        self._free: queue.SimpleQueue[SavePipeline] = queue.SimpleQueue()
        for pipeline in self.pipelines:
            self._free.put(pipeline)
        self._pool = ThreadPoolExecutor(self.n)

    def submit(self, images: NDArray[np.uint8], embeddings: NDArray[np.float32]) -> Future[Answer]:
        """Mask images uint8 (F,S,S,3) with embeddings float32 (F,128) as soon as a lane is free.

        The result raises the errors of SavePipeline.run, and ParityError for logits that are not
        finite.
        """
        return self._pool.submit(self._run, images, embeddings)

    def _run(self, images: NDArray[np.uint8], embeddings: NDArray[np.float32]) -> Answer:
        pipeline, began = self._free.get(), time.perf_counter()
        try:
            logits = pipeline.run(images, embeddings)
        finally:
            self._free.put(pipeline)
        require_finite(logits)
        return logits, time.perf_counter() - began

    def stop(self) -> None:
        """End the threads, after the calls in hand. The pipelines stay open."""
        self._pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        self.stop()
        for pipeline in self.pipelines:
            pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def as_lanes(models: SavePipeline | Lanes) -> Iterator[Lanes]:
    """Yield lanes, or one lane of a pipeline for the block. What is given stays open."""
    if isinstance(models, Lanes):
        yield models
        return
    lanes = Lanes([models])
    try:
        yield lanes
    finally:
        lanes.stop()


def open_lanes(load: Load, threads: int | None, n: int) -> Lanes:
    """Open a bundle for n frames at a time. threads: of all of them together; None for all cores.

    load is called once on a CPU, where lanes share the weights, else once per lane. Raises its errors.
    """
    with ExitStack() as opened:  # closes them if not all can be opened
        pipelines = [load(threads, n)]
        opened.callback(pipelines[0].close)
        on_gpu = pipelines[0].backend in GPU_BACKENDS
        for _ in range(n - 1):
            another = load(threads, n) if on_gpu else pipelines[0].twin()
            opened.callback(another.close)
            pipelines.append(another)
        opened.pop_all()
    each = 0 if on_gpu else max(1, (threads or default_threads()) // n)
    return Lanes(pipelines, _how(n, each))


def faster_lanes(
    load: Load, bundle: Path, backend: str, threads: int | None, *, frames: int | None = None
) -> Lanes:
    """Open a bundle for one frame at a time or for several, whichever gives more frames per second.

    backend: as load() is asked for, part of the key under which the measurement is kept.
    frames: number of frames to come, if known. For a few nothing is measured.
    Raises the errors of load().
    """
    most = min(threads or default_threads(), allowed_cores(), _MOST_STREAMS)
    if most < 2 or not (bundle / MANIFEST).is_file() or not _fits_twice(bundle):
        return open_lanes(load, threads, 1)
    manifest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    place = measurement_file("lanes", manifest, backend, threads, most)
    kept = None if place is None else _kept(place)
    if kept is not None:
        rates, of_backend = kept
        lanes = open_lanes(load, threads, max(rates, key=rates.__getitem__))
        if lanes.first.backend == of_backend:  # "auto" may choose another one than it did
            lanes.how += f" ({_said(rates)}, measured before)"
            return lanes
        lanes.close()
    one = open_lanes(load, threads, 1)
    if one.first.backend in GPU_BACKENDS or (frames is not None and frames < FEWEST_FRAMES):
        return one
    try:
        ways = [one, open_lanes(load, threads, most)]
    except BaseException:
        one.close()
        raise
    try:
        rates, others = _measured(ways, threads)
    except BaseException:
        for lanes in ways:
            lanes.close()
        raise
    if place is not None and not others:
        keep(place, json.dumps({"backend": one.first.backend, "rates": rates}).encode())
    ways.sort(key=lambda lanes: rates[lanes.n])
    ways[0].close()
    ways[1].how += f" (measured: {_said(rates)}{', beside other processes' if others else ''})"
    return ways[1]


def _how(n: int, threads: int) -> str:
    text = "1 frame at a time" if n == 1 else f"{n} frames at a time"
    return f"{text}, {threads} thread{'s' * (threads != 1)} each" if threads else text


def _said(rates: dict[int, float]) -> str:
    return ", ".join(f"{rate:.1f} frames/s with {n} at a time" for n, rate in rates.items())


def _measured(ways: Sequence[Lanes], threads: int | None) -> tuple[dict[int, float], bool]:
    """Return the frames per second of the models alone by number of lanes, and if others disturbed it.

    Medians of bursts in turn, of rounds in which no other process used the cores, if there are any.
    """
    for lanes in ways:
        _burst(lanes, 0.0)  # the first call allocates
    found: dict[int, list[float]] = {lanes.n: [] for lanes in ways}
    watch = Watch(threads)
    for _ in watch.rounds(_ROUNDS):
        for lanes in ways:
            found[lanes.n].append(_burst(lanes, _BURST_S))
        watch.round_done()
    medians = {n: statistics.median(watch.pick(rates)) for n, rates in found.items()}
    return {n: round(rate, 1) for n, rate in medians.items()}, watch.result().withheld


def _burst(lanes: Lanes, seconds: float) -> float:
    """Return the frames per second of all lanes during so many seconds, at least a call of each."""
    side, batch = lanes.first.config.res, lanes.first.batch
    images = np.zeros((batch, side, side, 3), np.uint8)
    embeddings = np.zeros((batch, AUDIO_DIM), np.float32)
    began, n = time.perf_counter(), 0
    waiting = [lanes.submit(images, embeddings) for _ in range(lanes.n)]
    while waiting:
        waiting.pop(0).result()
        n += batch
        if time.perf_counter() - began < seconds:
            waiting.append(lanes.submit(images, embeddings))
    return n / (time.perf_counter() - began)


def _fits_twice(bundle: Path) -> bool:
    needed = sum(cpu_bytes(bundle / name) for name in GRAPHS)
    return 2 * needed < available_bytes() / 2


def _kept(place: Path) -> tuple[dict[int, float], str] | None:
    """Return the kept rates and the backend that they are of."""
    content = read_kept(place)
    if content is None:
        return None
    try:
        found = json.loads(bytes(content))
        return {int(n): float(rate) for n, rate in found["rates"].items()}, str(found["backend"])
    except (ValueError, KeyError, TypeError, AttributeError):  # of another version
        return None
