"""Speed of every entry in the same rounds, and the time of the parts of a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import numpy as np
from PIL import Image

from save_deploy.bundle import Arrays
from save_deploy.data.sample import Clip, Sample
from save_deploy.data.transforms import resize_frame
from save_deploy.metrics.disturbance import Disturbance
from save_deploy.metrics.latency import STEADY, LatencyResult
from save_deploy.runtime.compare.entries import Entry, Pool
from save_deploy.runtime.compare.others import Watch
from save_deploy.runtime.compare.rows import TimeSplit
from save_deploy.runtime.pipeline import SavePipeline

BUDGET_S, ONE_BUDGET_S = 30.0, 20.0
_WARMUP = 2
_TIMES_ROUNDS = 3  # at most, while samples are not steady
_ROUNDS_ALONE, _CALLS_ALONE = 3, 2  # when entries are opened anew in every round


@dataclass(frozen=True)
class Timing:
    """Raw samples by name, from host memory to host memory, taken in interleaved rounds.

    resident: all entries were open at the same time.
    device_ms: times of the same calls between CUDA events, for sessions that measure it.
    """

    latency: dict[str, LatencyResult]
    resident: bool = True
    device_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def noise(self) -> float:
        return max(result.spread for result in self.latency.values())

    def device_p50(self, name: str) -> float | None:
        """Return the median time on the device, None when the session does not measure it."""
        taken = self.device_ms.get(name)
        return LatencyResult(tuple(taken)).p50_ms if taken else None

    @property
    def steady(self) -> bool:
        return self.noise <= STEADY

    @property
    def others(self) -> Disturbance:
        """What other processes did to the rounds; the same for all names."""
        found = next(iter(self.latency.values())).others
        return found or Disturbance()


def example_inputs(pipeline: SavePipeline, clip: Clip) -> Arrays:
    """Return real inputs of the model graph: the first frames of a clip and their audio."""
    samples = [s for s, _ in zip(cycle(clip.samples()), range(pipeline.batch), strict=False)]
    return {
        "image": np.stack([resize_frame(s.frame, pipeline.config.res) for s in samples]),
        "audio_embedding": np.concatenate([pipeline.embed(s.heard()) for s in samples]),
    }


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = _WARMUP,
    budget_s: float = ONE_BUDGET_S,
    batch: int = 1,
    threads: int | None = None,
    on_sample: Callable[[str], None] = lambda name: None,
) -> dict[str, LatencyResult]:
    """Time each call once per round: at least 3 rounds, then until `rounds` or the time budget.

    The order rotates from round to round. Returns raw samples by name. Rounds that other processes
    disturbed are dropped and repeated, up to as many again.
    batch: frames per call. threads: of the calls, see Watch.
    on_sample: called with the name after each timed call, also of rounds that are dropped.
    """
    watch = Watch(threads)
    samples = _time_rounds(calls, watch, rounds, warmup, budget_s, on_sample)
    return _results(samples, watch, batch)


def _results(
    samples: Mapping[str, Sequence[float]], watch: Watch, batch: int, calls: int = 1
) -> dict[str, LatencyResult]:
    others = watch.result()
    return {name: LatencyResult(watch.pick(s, calls), batch, others) for name, s in samples.items()}


def _time_rounds(
    calls: Mapping[str, Callable[[], object]], watch: Watch, rounds: int, warmup: int,
    budget_s: float, on_sample: Callable[[str], None],
) -> dict[str, list[float]]:  # fmt: skip
    for _ in range(warmup):
        for call in calls.values():
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, started = list(calls), time.perf_counter()
    for i in watch.rounds(rounds):
        if i >= 3 and time.perf_counter() - started > budget_s:
            break
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.perf_counter()
            calls[name]()
            samples[name].append((time.perf_counter() - begin) * 1000)
            on_sample(name)
        watch.round_done()
    return samples


def time_entries(
    pool: Pool, entries: Sequence[Entry], inputs: Arrays, *, rounds: int, extend: bool = True,
    budget_s: float = BUDGET_S,
) -> Timing:  # fmt: skip
    """Time the model graph of every entry on real inputs, warm, in interleaved rounds.

    extend: continue while the samples of an entry are not steady, up to three times `rounds` and
        within the time budget.
    Entries that do not fit into memory together are opened again in each of three rounds.
    Rounds that other processes disturbed are dropped and repeated, see time_interleaved.
    """
    watch = Watch(entries[0].threads)
    if not pool.resident:
        return _alone(pool, entries, inputs, watch)
    batch, events = len(inputs["image"]), _DeviceTimes()
    with ExitStack() as stack:
        models = {e.name: stack.enter_context(pool.use(e)).model for e in entries}
        calls = {name: partial(model.infer, inputs) for name, model in models.items()}
        take = lambda name: events.take(name, models[name])
        if extend:
            latency = _until_steady(calls, watch, rounds, budget_s, batch, take)
        else:
            samples = _time_rounds(calls, watch, rounds, _WARMUP, ONE_BUDGET_S, take)
            latency = _results(samples, watch, batch)
    return Timing(latency, device_ms=events.picked(watch))


class _DeviceTimes:
    """Device times that sessions measured for every timed call."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    def take(self, name: str, model: object) -> None:
        ms = getattr(model, "device_ms", None)
        if ms is not None:
            self.samples.setdefault(name, []).append(ms)

    def picked(self, watch: Watch, calls: int = 1) -> dict[str, tuple[float, ...]]:
        return {name: watch.pick(values, calls) for name, values in self.samples.items()}


def _until_steady(
    calls: Mapping[str, Callable[[], object]], watch: Watch, rounds: int, budget_s: float,
    batch: int, on_sample: Callable[[str], None],
) -> dict[str, LatencyResult]:  # fmt: skip
    samples: dict[str, list[float]] = {name: [] for name in calls}
    found: dict[str, LatencyResult] = {}
    begun = time.perf_counter()
    for i in range(_TIMES_ROUNDS):
        left = budget_s - (time.perf_counter() - begun)
        if i and (left <= 0 or Timing(found).steady):
            break
        warmup = 0 if i else _WARMUP
        taken = _time_rounds(calls, watch, rounds, warmup, left, on_sample)
        for name, values in taken.items():
            samples[name] += values
        found = _results(samples, watch, batch)
    return found


def _alone(pool: Pool, entries: Sequence[Entry], inputs: Arrays, watch: Watch) -> Timing:
    samples: dict[str, list[float]] = {entry.name: [] for entry in entries}
    events = _DeviceTimes()
    for i in watch.rounds(_ROUNDS_ALONE):
        shift = i % len(entries)
        for entry in [*entries[shift:], *entries[:shift]]:
            with pool.use(entry) as pipeline:
                pipeline.model.infer(inputs)  # warm
                for _ in range(_CALLS_ALONE):
                    begin = time.perf_counter()
                    pipeline.model.infer(inputs)
                    samples[entry.name].append((time.perf_counter() - begin) * 1000)
                    events.take(entry.name, pipeline.model)
        watch.round_done()
    taken = _results(samples, watch, len(inputs["image"]), _CALLS_ALONE)
    return Timing(taken, resident=False, device_ms=events.picked(watch, _CALLS_ALONE))


def split_times(pipeline: SavePipeline, samples: Sequence[Sample]) -> TimeSplit:
    """Return median times over real frames: resize, audio embedding, model, masks at frame size.

    Each is one call. The first sample is only a warm-up.
    """
    batch, res = pipeline.batch, pipeline.config.res
    found = []
    for sample in [samples[0], *samples]:
        height, width = sample.frame.shape[:2]
        window = sample.heard()
        at = [time.perf_counter()]
        image = np.stack([resize_frame(sample.frame, res) for _ in range(batch)])
        at.append(time.perf_counter())
        embedding = np.concatenate([pipeline.embed(window) for _ in range(batch)])
        at.append(time.perf_counter())
        logits = pipeline.run(image, embedding)
        at.append(time.perf_counter())
        for values in logits:  # as SavePipeline.mask
            resized = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
            np.asarray(resized) > 0  # noqa: B015
        at.append(time.perf_counter())
        found.append(np.diff(at) * 1000)
    return TimeSplit(*(float(ms) for ms in np.median(found[1:], axis=0)))
