"""Run a comparison: options -> rows, worst frames, sections, checks and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice

from save_deploy.bundle import MANIFEST, sha256_of
from save_deploy.data.open import open_dataset
from save_deploy.data.sample import Clip, ClipDataset, Sample
from save_deploy.data.skipping import SkippingDataset, iter_clips
from save_deploy.machine import read_nvidia
from save_deploy.metrics.latency import STEADY, speedup
from save_deploy.metrics.segmentation import AVSBENCH
from save_deploy.progress import countdown, raise_if_interrupted
from save_deploy.runtime.compare.accuracy import Accuracy, measure_accuracy
from save_deploy.runtime.compare.budget import check_rows
from save_deploy.runtime.compare.choice import keep_choices
from save_deploy.runtime.compare.entries import Entry, Pool, fit_together
from save_deploy.runtime.compare.options import CompareOptions
from save_deploy.runtime.compare.plan import Group, Plan, make_plan, with_dataset
from save_deploy.runtime.compare.process import measure_memory
from save_deploy.runtime.compare.rows import Row, TimeSplit
from save_deploy.runtime.compare.sections import bundle_sections
from save_deploy.runtime.compare.speed import (
    Timing,
    example_inputs,
    split_times,
    time_entries,
)
from save_deploy.runtime.compare.worst import frame_badness
from save_deploy.runtime.html.data import Check, ReportFrame, Section
from save_deploy.runtime.inputs import as_threshold
from save_deploy.runtime.session import default_threads

STAGES = ("open", "accuracy", "time", "memory")
SPLIT_CLIPS = 2  # clips on whose frames the time split is measured


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    frames: worst frames in descending order.
    notes: how it was measured, line by line.
    skipped: clip name -> reason.
    made: date and time. command: as it was typed, "" for calls from Python.
    bundles: name -> sha256 of the manifest, which holds those of all files.
    """

    title: str
    rows: tuple[Row, ...]
    frames: tuple[ReportFrame, ...]
    sections: tuple[Section, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    options: CompareOptions = field(default_factory=lambda: CompareOptions(()))
    made: str = ""
    command: str = ""
    bundles: dict[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        return "; ".join(self.notes)


def run_comparison(
    options: CompareOptions, *, on_stage: Callable[[str, str], None] = lambda *_: None
) -> Comparison:
    """Run a comparison. Invalid options are refused before the first measurement.

    on_stage: called with a stage of STAGES and a detail, for progress.
    Raises SaveDeployError. A result over budget does not raise; it is in `checks` (budget.require).
    """
    as_threshold(options.threshold)
    datasets = {name: _open(name, options) for name in dict.fromkeys(options.data)}
    on_stage("open", f"{len(options.bundles)} bundles on {', '.join(options.backends)}")
    plan = make_plan(options)
    rows: list[Row] = []
    frames: list[ReportFrame] = []
    timings: list[Timing] = []
    choices: list[str] = []
    for group in plan.groups:
        found = _run_group(group, datasets, options, on_stage)
        rows += found.rows
        frames += found.frames
        timings.append(found.timing)
        choices += keep_choices(plan.bundles, group.entries, found.timing, options.threads)
    frames.sort(key=lambda frame: frame_badness(frame.reference_mask, frame.masks, 0), reverse=True)
    sections = [Section("Backends left out", "\n\n".join(plan.left_out))] if plan.left_out else []
    sections += [
        section
        for label, (folder, manifest) in plan.bundles.items()
        for section in bundle_sections(folder, manifest, label if len(plan.bundles) > 1 else "")
    ]
    skipped: dict[str, str] = {}
    for dataset in datasets.values():
        skipped |= dataset.skipped if isinstance(dataset, SkippingDataset) else {}
    return Comparison(
        title=f"{', '.join(plan.bundles)} against {'eager' if options.eager else 'the first'}",
        rows=tuple(rows),
        frames=tuple(frames),
        sections=tuple(sections),
        checks=check_rows(rows, options.budget),
        notes=(*_notes(plan, rows, timings, options), *choices),
        skipped=skipped,
        options=options,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        bundles={n: sha256_of(folder / MANIFEST) for n, (folder, _) in plan.bundles.items()},
    )


@dataclass(frozen=True)
class _Found:
    rows: list[Row]
    frames: list[ReportFrame]
    timing: Timing


def _run_group(
    group: Group,
    datasets: dict[str, ClipDataset],
    options: CompareOptions,
    on_stage: Callable[[str, str], None],
) -> _Found:
    results: dict[str, dict[str, Accuracy]] = {}
    frames: list[ReportFrame] = []
    with Pool(resident=fit_together(group.entries, group.config)) as pool:
        for name, clips in datasets.items():
            raise_if_interrupted()
            label = with_dataset(group, name)
            n_steps = len(clips) * len(group.entries)
            results[label], worst = measure_accuracy(
                pool,
                group.entries,
                clips,
                res=group.config.res,
                dataset=label,
                worst=options.frames,
                protocol=replace(AVSBENCH, threshold=options.threshold),
                on_step=countdown(on_stage, "accuracy", label, n_steps),
            )
            frames += worst
        first = list(islice(iter_clips(next(iter(datasets.values()))), SPLIT_CLIPS))
        on_stage("time", f"{len(group.entries)} in turn")
        with pool.use(group.entries[0]) as pipeline:
            inputs = example_inputs(pipeline, first[0])
        timing = time_entries(pool, group.entries, inputs, rounds=options.rounds)
        splits = _splits(pool, group.entries, first)
    memory = {}
    if options.memory:  # after the pool is closed, so that only one model is in memory
        on_stage("memory", "one process each")
        sample = next(first[0].samples())
        memory = {e.name: measure_memory(e, sample.frame, sample.heard()) for e in group.entries}
    rows = [
        _row(entry, label, found[entry.name], group, timing, splits, memory)
        for label, found in results.items()
        for entry in group.entries
    ]
    return _Found(rows, frames, timing)


def _splits(pool: Pool, entries: tuple[Entry, ...], clips: list[Clip]) -> dict[str, TimeSplit]:
    samples: list[Sample] = [sample for clip in clips for sample in clip.samples()]
    found = {}
    for entry in entries:
        with pool.use(entry) as pipeline:
            found[entry.name] = split_times(pipeline, samples)
    return found


def _row(
    entry: Entry, label: str, accuracy: Accuracy, group: Group, timing: Timing,
    splits: dict[str, TimeSplit], memory: dict[str, float | None],
) -> Row:  # fmt: skip
    reference = timing.latency[group.entries[0].name]
    return Row(
        backend=entry.backend,
        precision=entry.precision,
        size_mb=entry.size_mb,
        latency=timing.latency[entry.name],
        speedup=speedup(reference, timing.latency[entry.name]),
        score=accuracy.score,
        parity=accuracy.parity,
        name=entry.name,
        bundle=entry.bundle,
        dataset=label,
        margin=accuracy.margin,
        peak_memory_mib=memory.get(entry.name),
        time_split=splits[entry.name],
        device=entry.device,
        device_ms=timing.device_p50(entry.name),
    )


def _open(name: str, options: CompareOptions) -> ClipDataset:
    return open_dataset(
        name,
        split=options.split,
        n_clips=options.clips,
        source=options.sound_from,
        skip_bad=options.skip_bad,
    )


def _notes(
    plan: Plan, rows: list[Row], timings: list[Timing], options: CompareOptions
) -> tuple[str, ...]:
    frames = {row.dataset: row.score for row in rows}
    counted = ", ".join(
        f"{s.n_frames} frames of {s.n_videos} videos of {label}" for label, s in frames.items()
    )
    noise = max(timing.noise for timing in timings)
    rounds = max(len(r.samples_ms) for timing in timings for r in timing.latency.values())
    how = "in turn"
    if not all(timing.resident for timing in timings):
        how = "opened again in every round (together too large for memory)"
    steady = f"noise {noise:.0%}"
    if noise > STEADY:
        steady = f"NOT steady, noise {noise:.0%}: trust ratios, not milliseconds"
    lines = [
        f"{counted} (split {options.split})",
        f"{rounds} timed calls each of the model graph, {how}, {steady}; "
        f"threads: {options.threads or default_threads()}",
    ]
    if all(row.device == "cpu" for row in rows):
        lines.append("all on the CPU")
    else:
        lines.append(
            f"GPU: {'; '.join(read_nvidia().lines()) or 'unknown'}. Milliseconds are from host memory "
            "to host memory; on device ms are between CUDA events, without the copies"
        )
    if not options.eager:
        first = ", ".join(dict.fromkeys(group.entries[0].name for group in plan.groups))
        lines.append(f"no eager model: the reference of every ratio and agreement is {first}")
    lines += dict.fromkeys(t.others.text for t in timings if t.others.text)
    return tuple(lines)
