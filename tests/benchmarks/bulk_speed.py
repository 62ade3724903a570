"""The figures of docs/scale.md: frames of a 720p film per second of CPU time and of the clock, in turn.

python -m tests.benchmarks.bulk_speed BUNDLE --rounds 5

CPU time is that of the whole process, its threads included, so work beside it disturbs it little. Run
from the repository root, on the cores to be measured (taskset -c 0). Loading is not counted.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import typer

from save_deploy.config import AUDIO_DIM
from save_deploy.machine import allowed_cores, cpu_name
from save_deploy.runtime.bulk.film import FilmOptions
from save_deploy.runtime.bulk.options import BulkOptions
from save_deploy.runtime.bulk.run import BulkResult, BulkRun
from save_deploy.runtime.bulk.worker import Task
from save_deploy.runtime.lanes import Lanes, open_lanes
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.video.options import OutputOptions, RunOptions, Section
from save_deploy.runtime.video.run import VideoRun

RATE = 16_000
WAYS: dict[str, dict[str, Any]] = {
    "rle": {},
    "rle, --masks-at network": {"masks_at": "network"},
    "rle, --resize area": {"resize": "area"},
    "rle, both": {"masks_at": "network", "resize": "area"},
    "png": {"format": "png"},
    "rle, --fps 1": {"fps": 1.0},
    "rle, --fps keyframes": {"fps": "keyframes"},
}


def write_film(path: Path, *, seconds: int, size: tuple[int, int], fps: int = 25) -> None:
    """A picture of smooth noise that moves, and a tone: a decoder has about as much to do as with a
    recording."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (size[1] // 16 + 8, size[0] // 16 + 64, 3), np.uint8)
    from PIL import Image

    wide = np.asarray(Image.fromarray(small).resize((size[0] + 896, size[1]), Image.BICUBIC))
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        sound: Any = container.add_stream("aac", rate=RATE, layout="mono")
        for k in range(seconds * fps):
            left = 4 * k % 896
            picture = np.ascontiguousarray(wide[:, left : left + size[0]])
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode(None))
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(seconds * RATE) / RATE)
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), "fltp", "mono")
        frame.rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


class Timed(BulkRun):
    """Measures the run itself, without the loading of models."""

    cpu_s = 0.0

    def _run(self, *args: Any) -> BulkResult:
        began = time.process_time()
        result = super()._run(*args)
        self.cpu_s = time.process_time() - began
        return result


Rates = tuple[float, float]  # frames per second: of CPU time, of the clock


def own_fps(pipeline: SavePipeline, seconds: float) -> Rates:
    """Of the model alone."""
    side, batch = pipeline.config.res, pipeline.batch
    images = np.zeros((batch, side, side, 3), np.uint8)
    heard = np.zeros((batch, AUDIO_DIM), np.float32)
    pipeline.run(images, heard)
    began, cpu, n = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        pipeline.run(images, heard)
        n += batch
    return n / (time.process_time() - cpu), n / (time.perf_counter() - began)


def one_by_one(lanes: Lanes, films: list[Path], folder: Path, output: str) -> Rates:
    """Frames per second of save-run with one output, a film after the other. output: out, masks or
    record."""
    began, cpu, frames = time.perf_counter(), time.process_time(), 0
    made: dict[str, Any] = {output: folder / {"out": "o.mp4", "masks": "m", "record": "r"}[output]}
    for film in films:
        frames += VideoRun(RunOptions(video=film, force=True, **made))(lanes).frames
    return frames / (time.process_time() - cpu), frames / (time.perf_counter() - began)


def in_bulk(
    bundle: Path,
    films: Path,
    out: Path,
    actors: int,
    *,
    backend: str,
    fps: Any = None,
    **options: Any,
) -> tuple[BulkResult, float]:
    """What it did, and its CPU time in seconds."""
    shutil.rmtree(out, ignore_errors=True)
    threads = max(1, allowed_cores() // actors)
    asked = BulkOptions(actors=actors, threads_per_actor=threads, **options)
    run = Timed((str(films),), asked, OutputOptions(out=out, section=Section(fps=fps)))
    return run(Task(bundle=bundle, out=out, film=FilmOptions(), backend=backend)), run.cpu_s


def main(
    bundle: Path,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[int, typer.Option(min=1)] = 4,
    films: Annotated[int, typer.Option(min=1)] = 2,
    height: Annotated[int, typer.Option(min=16)] = 720,
    backend: str = "auto",
) -> None:
    cores = allowed_cores()

    def opened(threads: int | None, streams: int) -> SavePipeline:
        return load(bundle, backend=backend, threads=threads, streams=streams)

    print(f"{cpu_name()}, {cores} cores; {films} films {height}p of {seconds} s, {rounds} rounds")
    with (
        tempfile.TemporaryDirectory() as name,
        load(bundle, backend=backend) as pipeline,
        open_lanes(opened, None, cores) as lanes,
    ):
        folder = Path(name) / "films"
        folder.mkdir()
        write_film(folder / "0.mp4", seconds=seconds, size=(height * 16 // 9, height))
        for k in range(1, films):
            shutil.copy(folder / "0.mp4", folder / f"{k}.mp4")
        paths, out, splits = sorted(folder.iterdir()), Path(name) / "out", dict[str, str]()

        def bulk(label: str, actors: int, options: dict[str, Any]) -> Rates:
            result, cpu = in_bulk(bundle, folder, out, actors, backend=backend, **options)
            played = films * seconds / result.seconds
            per_cpu = films * seconds / cpu
            splits[label] = (
                f"{per_cpu:.2f} s of film per CPU second, {played:.2f} per second; {result.split}"
            )
            return result.frames / cpu, result.frames / result.seconds

        ways: dict[str, Callable[[], Rates]] = {
            "model alone": lambda: own_fps(pipeline, seconds),
        }
        for n, models in ((1, Lanes([pipeline])), (cores, lanes)):
            for output in ("out", "record", "masks"):
                label = f"save-run --{output.replace('record', 'json')}, {n} at a time"
                ways[label] = lambda m=models, o=output: one_by_one(m, paths, Path(name), o)  # type: ignore[misc]
        for actors in (1, 2) if cores > 1 else (1,):
            for label, options in WAYS.items():
                if actors == 1 or not options:
                    shown = f"{label}, {actors} actor{'s' * (actors > 1)}"
                    ways[shown] = lambda s=shown, a=actors, o=options: bulk(s, a, o)  # type: ignore[misc]
        found: dict[str, list[Rates]] = {label: [] for label in ways}
        for _ in range(rounds):
            for label, way in ways.items():
                found[label].append(way())
    print(
        "| way | frames per CPU second | of the model's | frames/s, lowest..highest | of the model's |"
    )
    print("|---|---|---|---|---|")
    for label, rates in found.items():
        cells = []
        for k, measured in enumerate(zip(*rates, strict=True)):
            own = [a / b[k] for a, b in zip(measured, found["model alone"], strict=True)]
            low, middle, high = min(measured), statistics.median(measured), max(measured)
            cells += [f"{low:.1f}..{high:.1f}" if k else f"{middle:.1f}"]
            cells += [f"{statistics.median(own):.0%}"]
        print(f"| {label} | {' | '.join(cells)} |")
    for label, split in splits.items():
        print(f"{label}: {split}")


if __name__ == "__main__":
    typer.run(main)
