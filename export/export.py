"""Export of a checkpoint to a proven bundle.

`export` calls the stages in order, one function each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from save_deploy.bundle import Manifest, audio_spec, check_own_bundle, model_spec, record_files
from save_deploy.calibration.pairs import collect_pairs
from save_deploy.calibration.table import CalibrationTable
from save_deploy.checkpoints import builtin_path, load_model
from save_deploy.config import SaveConfig
from save_deploy.data.open import open_dataset
from save_deploy.errors import ExportError, ParityError
from save_deploy.export.audio_graph import DeployAudioEncoder
from save_deploy.export.batches import batch_section, prove_batches, write_batches
from save_deploy.export.fp16 import Fp16Plan, plan_fp16
from save_deploy.export.golden import Golden, run_golden, write_conformance, write_golden
from save_deploy.export.graph import WrittenGraph, trace_together, write_graph
from save_deploy.export.memory import WeightMemory, frames_at_once
from save_deploy.export.merge.deploy import DeployModel, merge
from save_deploy.export.merge.proof import MergeProof
from save_deploy.export.options import ExportOptions
from save_deploy.export.prove import (
    LARGE_ROUNDS,
    Eager,
    Proved,
    choose_entries,
    prove_entries,
    require_budget,
    require_fp8_backend,
)
from save_deploy.export.quantize.calibrate import obtain_table
from save_deploy.export.quantize.explain import Explanation, Quantized, explain
from save_deploy.export.quantize.plan import TABLE_FILE, QuantPlan, plan_quantization
from save_deploy.export.quantize.search import SearchResult, search_precision
from save_deploy.export.quantize.smooth import apply_smoothing
from save_deploy.export.rejected import keep_rejected
from save_deploy.export.sources import Sources
from save_deploy.files import cache_folder, check_folder_target, new_folder
from save_deploy.machine import versions
from save_deploy.model.save import SaveModel
from save_deploy.progress import countdown, resumable
from save_deploy.runtime.compare.export_table import footnote, write_report
from save_deploy.runtime.compare.rows import Row
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.golden import one_sided

OnStage = Callable[[str, str], None]


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    folder: the bundle.
    rows, note: comparison with eager and its footnote.
    proof: float64 proof of the merge.
    fp16: FP16 plan, None for FP32 floats.
    lines: effects of quantization and the proof of further batches, as sentences.
    notes: what the comparison does not prove.
    """

    folder: Path
    rows: tuple[Row, ...]
    note: str
    proof: MergeProof
    fp16: Fp16Plan | None
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Golden samples, and the manifest entries of golden/ and conformance/."""

    golden: Golden
    golden_entry: dict[str, Any]
    conformance_entry: dict[str, Any]


@dataclass(frozen=True)
class Merged:
    """Deploy model with its proof.

    table: measured ranges, None without quantization.
    measured: True when this export measured the ranges.
    """

    deploy: DeployModel
    proof: MergeProof
    table: CalibrationTable | None
    measured: bool = False

    def ranges_are_cached(self) -> bool:
        """Return True when a second run of the same command would find the ranges in the cache."""
        return self.measured and cache_folder("calibration") is not None


@dataclass(frozen=True)
class Plans:
    """Precision plans.

    quant: which MatMuls are quantized.
    fp16: measured plan of FP16 floats. With FP32 floats it exists when the comparison has an FP16
        row.
    """

    quant: QuantPlan | None
    fp16: Fp16Plan | None


@dataclass(frozen=True)
class Graphs:
    """Written graphs.

    own: the bundle's model.onnx. Graphs of further batches have the same nodes.
    quant: quantization plan after the precision search.
    found: result of the search, None without one.
    compared: (precision, file) of graphs that only the comparison uses.
    """

    own: WrittenGraph
    quant: QuantPlan | None
    found: SearchResult | None
    compared: tuple[tuple[str, Path], ...]


def export(options: ExportOptions, *, on_stage: OnStage = lambda *_: None) -> ExportResult:
    """Write the bundle options.folder.

    on_stage: called as on_stage(stage, detail) for progress.
    A repeated call resumes an interrupted calibration or search.
    Raises SaveDeployError for invalid options and inputs, and ParityError when the bundle is over
    budget. In both cases nothing is written to the target; in the second the report is kept beside
    it (rejected.py).
    """
    if options.precision.quantized == "fp8":
        require_fp8_backend()  # fail now, not after a long calibration
    check_folder_target(options.folder, force=options.force, is_ours=check_own_bundle)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    is_ours = check_own_bundle if options.force else None
    with new_folder(options.folder, what="the bundle", is_ours=is_ours) as folder:
        on_stage("load", str(options.checkpoint or "built-in vit_t"))
        sources = Sources([f for f in (options.checkpoint or builtin_path(), options.sam) if f])
        model = load_model(options.checkpoint, res=options.res, sam=options.sam)
        sources.hash()
        memory = WeightMemory(model, model.config)
        stage = memory.between_stages(on_stage)

        samples = write_samples(folder, model, memory, options, stage)
        merged = merge_and_calibrate(model, samples.golden, options, stage)
        with resumable(merged.ranges_are_cached):
            plans = plan_precision(model, merged, memory, options, stage)
            about = describe_graph(model.config, options, sources)
            graphs = write_graphs(folder, model, merged, plans, memory, options, stage, about)
            proved = compare_graphs(folder, model, samples.golden, graphs, memory, options, stage)
            try:
                return finish(folder, samples, merged, plans, graphs, proved, sources, options)
            except ParityError as error:
                raise keep_rejected(
                    error, folder, options.folder, samples.golden, proved
                ) from error


def write_samples(
    folder: Path, model: SaveModel, memory: WeightMemory, options: ExportOptions, on_stage: OnStage
) -> Samples:
    """Write golden/ and conformance/: inputs and the outputs of the eager model."""
    n = options.n_golden
    on_stage("golden", f"{n} pairs of {options.data} through the eager model")
    clips = open_dataset(options.data, split="test")
    eager = eager_pipeline(model, batch=options.batch, further=memory.together)
    pairs = collect_pairs(clips, n, res=model.config.res)
    golden = run_golden(
        eager, pairs, countdown(on_stage, "golden", f"{options.data}, eager model", n),
        threads=options.threads, timed=LARGE_ROUNDS if memory.large else None,
    )  # fmt: skip
    require_both_sides(golden, options)
    entry = write_golden(folder, golden)
    conformance = write_conformance(folder, eager, options.budget, few=memory.large)
    return Samples(golden, entry, conformance)


def require_both_sides(golden: Golden, options: ExportOptions) -> None:
    """Raise ExportError where rounded numbers would be proven on masks all empty or all full."""
    wrong = one_sided(golden.sounding_share)
    if wrong and str(options.precision) != "fp32" and not options.allow_one_sided:
        raise ExportError(
            f"{options.precision} cannot be proven on these golden samples",
            got=f"{options.data}: {wrong}",
            expected="pairs in which the model finds something, and not everything",
            hint="--data with clips of what the model was trained for, or --allow-one-sided-golden",
        )


def merge_and_calibrate(
    model: SaveModel, golden: Golden, options: ExportOptions, on_stage: OnStage
) -> Merged:
    """Merge all exact rewrites, including smoothing. Raises ParityError when one is not exact."""
    on_stage("merge", "exact rewrites, each compared in float64")
    on_block = countdown(on_stage, "merge", "blocks compared", model.config.depth)
    deploy, proof = merge(model, options.forms, on_block=on_block)
    table = None
    if options.precision.quantized:
        table = obtain_table(model, deploy, options, golden.pairs, on_stage=on_stage)
        smoothed = apply_smoothing(deploy, table.smoothing)
        if smoothed is not None:
            proof = replace(proof, rewrites=(*proof.rewrites, smoothed))
    if not proof.exact:
        inexact = [r for r in proof.rewrites if not r.exact]
        raise ParityError("a rewrite is not exact in float64", got=str(inexact))
    measured = table is not None and options.measures_ranges
    return Merged(deploy, proof, table, measured)


def plan_precision(
    model: SaveModel, merged: Merged, memory: WeightMemory, options: ExportOptions,
    on_stage: OnStage,
) -> Plans:  # fmt: skip
    """Choose the FP32 modules and the quantized MatMuls.

    FP16 ranges are measured on pairs of the val split, golden samples are from the test split.
    """
    fp16 = None
    asked = options.precision
    if asked.floats == "fp16" or (asked.quantized and not memory.large):
        on_stage("precision", "measuring ranges")
        n = 1 if memory.large else options.n_golden
        pairs = collect_pairs(open_dataset(options.data, split="val"), n, res=options.res)
        pipeline = eager_pipeline(model)
        at_once = frames_at_once(model.config)
        done = countdown(on_stage, "precision", "ranges of pairs", len(pairs))

        def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for start in range(0, len(pairs), at_once):
                chosen = slice(start, start + at_once)
                embeddings = [pipeline.embed(waveform) for waveform in pairs.waveform[chosen]]
                yield (
                    torch.from_numpy(pairs.image[chosen]),
                    torch.from_numpy(np.concatenate(embeddings)),
                )
                done(n=len(embeddings))

        fp16 = plan_fp16(merged.deploy, batches())
    quant = None
    if merged.table is not None:
        quant = plan_quantization(merged.deploy, merged.table, options)
    return Plans(quant, fp16)


def describe_graph(config: SaveConfig, options: ExportOptions, sources: Sources) -> dict[str, str]:
    """What an ONNX file says of itself, in its metadata_props."""
    files = sources.to_dict()["files"]
    return {
        "system": config.system,
        "model": config.name,
        "resolution_px": str(config.res),
        "precision": str(options.precision),
        "target": options.target,
        "normalization": "in the graph: uint8 RGB goes in",
        "checkpoint_sha256": ", ".join(file["sha256"] for file in files),
    }


def write_graphs(
    folder: Path, model: SaveModel, merged: Merged, plans: Plans, memory: WeightMemory,
    options: ExportOptions, on_stage: OnStage, about: dict[str, str],
) -> Graphs:  # fmt: skip
    """Write model.onnx, those of further batches, audio.onnx, and what only the comparison needs.

    The model is traced once per batch; other precisions are made from the FP32 files. A large model
    has FP32 files only when it is quantized.
    """
    spec = model_spec(model.config, options.batch)
    floats = plans.fp16 if options.precision.floats == "fp16" else None
    quant, found = plans.quant, None
    compared: list[tuple[str, Path]] = []
    on_stage("trace", f"{model.config.name} at {options.res} px")
    audio = DeployAudioEncoder(model.audio_encoder).eval()
    specs = [model_spec(model.config, batch) for batch in options.batches]
    *graphs, heard_graph = trace_together(
        [*((merged.deploy, spec) for spec in specs), (audio, audio_spec())]
    )
    sources: dict[int, ir.Model | Path] = dict(zip(options.batches, graphs, strict=True))
    traced = folder / "fp32.onnx"
    if quant is not None or (floats is not None and not memory.large):
        found_files = write_batches(sources, folder, "fp32", model.config)
        compared.append(("fp32", traced))
        sources = {batch: graph.files[0] for batch, graph in found_files.items()}
    if quant is not None:
        if options.search.max_drop is not None:
            quant, found = search_precision(
                model, traced, quant, floats, options, on_stage=on_stage
            )
        memory.free(merged.deploy)  # the traced file is the only source from here on
        if plans.fp16 is not None and not memory.large:
            compared.append(("fp16", folder / "fp16.onnx"))
            write_graph(traced, compared[-1][1], spec, fp16=plans.fp16)
        quant.table.write(folder / TABLE_FILE)
    on_stage("write", "model.onnx, audio.onnx")
    written = write_batches(
        sources, folder, "model", model.config, quant=quant, fp16=floats, about=about
    )
    memory.free(merged.deploy)
    heard = {
        key: value for key, value in about.items() if key not in ("resolution_px", "precision")
    }
    write_graph(
        heard_graph, folder / "audio.onnx", audio_spec(), about=heard | {"sample_rate_hz": "16000"}
    )
    return Graphs(written[options.batch], quant, found, tuple(compared))


def compare_graphs(
    folder: Path, model: SaveModel, golden: Golden, graphs: Graphs, memory: WeightMemory,
    options: ExportOptions, on_stage: OnStage,
) -> Proved:  # fmt: skip
    """Measure parity and speed of every graph against eager on the golden samples.

    Of graphs with further batches only the parity.
    """
    on_stage("prove", "parity and speed against eager")
    pipeline = None if memory.large else eager_pipeline(model, batch=options.batch)
    memory.free(model)
    entries = choose_entries(options, model.config, graphs.compared, folder, large=memory.large)
    on_entry = countdown(on_stage, "prove", "graphs", len(entries))
    eager = Eager(pipeline, memory.weight_bytes / 1e6)
    proved = prove_entries(golden, eager, entries, options, on_entry)
    return replace(proved, batches=prove_batches(golden, entries, folder, options))


def finish(
    folder: Path, samples: Samples, merged: Merged, plans: Plans, graphs: Graphs,
    proved: Proved, sources: Sources, options: ExportOptions,
) -> ExportResult:  # fmt: skip
    """Write report.json, report.md and manifest.json.

    Raises ParityError when the bundle is over budget, and CheckpointError when the checkpoint was
    modified during the export.
    """
    sources.require_same()
    config = merged.deploy.config
    fp16 = plans.fp16 if options.precision.floats == "fp16" else None
    precision = plans.fp16.to_dict() if plans.fp16 else {"precision": "fp32"}
    explained = Explanation()
    if graphs.quant is not None:
        quantized = Quantized(graphs.quant, fp16, graphs.found, graphs.own.quantized_nodes)
        explained = explain(quantized, proved, samples.golden, folder, options)
        precision = explained.manifest
    for _, path in graphs.compared:
        for file in folder.glob(f"{path.stem}*"):  # its weights and further batches as well
            file.unlink()
    note = footnote(proved.rows, f"{options.data} (golden)", interleaved=proved.interleaved)
    extra = {
        "merge": merged.proof.to_dict(),
        "precision": precision,
        "operators": graphs.own.operators,
        **({"batches": [asdict(proof) for proof in proved.batches]} if proved.batches else {}),
    }
    write_report(
        folder,
        proved.rows,
        title=f"{config.name} {config.res} px {options.precision}",
        note=note,
        extra=extra | explained.report,
        sections=[*batch_section(proved.batches), *explained.sections],
    )
    Manifest(
        config=config,
        precision=precision,
        model=model_spec(config, options.batch),
        audio=audio_spec(),
        files=record_files(folder),
        golden={**samples.golden_entry, "budget": asdict(options.budget)},
        merge=merged.proof.to_dict() | {"target": options.target},
        source=sources.to_dict(),
        versions=versions(),
        conformance=samples.conformance_entry,
        batches=options.more_batches,
    ).write(folder)
    require_budget(proved, options, explained.why)
    wrong = one_sided(samples.golden.sounding_share)
    notes = (f"{wrong}; --data with clips of what the model was trained for",) if wrong else ()
    lines = (*explained.lines, *map(str, proved.batches))
    return ExportResult(options.folder, tuple(proved.rows), note, merged.proof, fp16, lines, notes)
