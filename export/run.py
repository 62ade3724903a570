"""The main job: checkpoint -> proven bundle. One straight line, stage by stage."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from save_deploy.bundle import Manifest, audio_spec, model_spec, record_files, sha256_of
from save_deploy.calibration.pairs import collect_pairs
from save_deploy.checkpoints import builtin_path, load_model
from save_deploy.config import SaveConfig
from save_deploy.data.open import open_dataset
from save_deploy.errors import ParityError
from save_deploy.export.audio_graph import DeployAudioEncoder
from save_deploy.export.conformance import write_conformance
from save_deploy.export.entries import choose_entries
from save_deploy.export.golden import run_golden, write_golden
from save_deploy.export.memory import free_weights, page_out
from save_deploy.export.merge.deploy import DeployModel, merge
from save_deploy.export.merge.proof import MergeProof
from save_deploy.export.onnx_export import (
    graph_from_module,
    operator_counts,
    release_graph,
    save_graph,
)
from save_deploy.export.options import ExportOptions
from save_deploy.export.precision import PrecisionPlan, drop_unused_weights, plan_fp16, to_fp16
from save_deploy.export.prove import prove_entries
from save_deploy.export.quantize.judge import judge, require_fp8_backend
from save_deploy.export.quantize.plan import TABLE_FILE, quantize_graph
from save_deploy.export.quantize.smooth import apply_smoothing
from save_deploy.export.quantize.stage import (
    obtain_table,
    plan_quantization,
    search_precision,
)
from save_deploy.files import check_folder_target, new_folder
from save_deploy.machine import versions
from save_deploy.model.save import SaveModel
from save_deploy.progress import countdown
from save_deploy.runtime.compare import Row
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.report import footnote, write_report
from save_deploy.runtime.session import as_batch

# Above this the eager model and a session are not held in memory together: eager is timed before.
LARGE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class ExportResult:
    """The bundle's folder and its comparison against eager; lines: what 8 bits gave, in words."""

    folder: Path
    rows: tuple[Row, ...]
    note: str
    proof: MergeProof
    plan: PrecisionPlan | None
    lines: tuple[str, ...] = ()


def export_bundle(
    options: ExportOptions, *, on_stage: Callable[[str, str], None] = lambda *_: None
) -> ExportResult:
    """Make the bundle. on_stage(stage, detail) reports progress.

    A repeated call takes up what an interrupted one has kept of its calibration and its search.
    Raises SaveDeployError for the user's mistakes, ParityError when the bundle is over budget; in
    both cases nothing is left at the target.
    """
    forms = options.forms
    if options.quantized == "fp8":
        require_fp8_backend()  # not after an hour
    check_folder_target(options.folder, force=options.force)
    torch.set_num_threads(options.threads or torch.get_num_threads())

    on_stage("load", str(options.checkpoint or "built-in vit_t"))
    model = load_model(options.checkpoint, res=options.res, sam=options.sam)
    config = model.config
    large = low_memory(config, _weight_bytes(model))
    eager_mb = _weight_bytes(model) / 1e6

    on_stage("golden", f"{options.n_golden} pairs of {options.data} through the eager model")
    clips = open_dataset(options.data, split="test")
    golden = run_golden(
        eager_pipeline(model, batch=options.batch),
        collect_pairs(clips, options.n_golden, res=config.res),
        countdown(on_stage, "golden", f"{options.data}, eager model", options.n_golden),
    )

    if large:
        page_out(model)
    on_stage("merge", "exact rewrites, each compared in float64")
    on_block = countdown(on_stage, "merge", "blocks compared", config.depth)
    deploy, proof = merge(model, forms, on_block=on_block)
    table = None
    if options.quantized:
        table = obtain_table(model, deploy, options, golden.pairs, on_stage=on_stage)
        smoothed = apply_smoothing(deploy, table.smoothing)
        if smoothed is not None:
            proof = replace(proof, rewrites=(*proof.rewrites, smoothed))
    if not proof.exact:
        raise ParityError(
            "a rewrite is not exact", got=str([r for r in proof.rewrites if not r.exact])
        )

    if large:
        page_out(model)
    plan = None
    if options.floats == "fp16" or (options.quantized and not large):
        on_stage("precision", "measuring ranges")
        plan = _plan(model, deploy, options, n=1 if large else options.n_golden)
    floats = plan if options.floats == "fp16" else None
    quant = None
    if table is not None:
        quant = plan_quantization(deploy, table, options, floats)

    if large:
        page_out(model)
    with new_folder(options.folder, what="the bundle") as folder:
        # before any weights are given back: the merged model shares them with the eager one
        reference = eager_pipeline(model, batch=options.batch)
        conformance = write_conformance(folder, reference, options.budget, few=large)
        del reference
        if large:
            page_out(model)
        on_stage("trace", f"{config.name} at {config.res} px")
        graph = graph_from_module(
            deploy,
            _example(config, options.batch),
            inputs=[i.name for i in model_spec(config).inputs],
            output="mask_logits",
        )
        compared: list[tuple[str, Path]] = []  # graphs that only the comparison needs
        nodes: tuple[str, ...] = ()
        found = None
        if quant is not None:
            traced = folder / "fp32.onnx"
            save_graph(graph, traced)
            if options.search.max_drop is not None:
                quant, found = search_precision(model, traced, quant, options, on_stage=on_stage)
            release_graph(graph)
            compared.append(("fp32", traced))
            if large:  # from here on all is read from the traced file
                free_weights(deploy)
            else:
                assert plan is not None
                compared.append(("fp16", _fp16_file(traced, plan)))
            on_stage("write", "model.onnx with Q/DQ, audio.onnx, golden samples")
            graph = ir.load(traced)
            nodes = quantize_graph(graph, quant)
            quant.table.write(folder / TABLE_FILE)
        else:
            if plan is not None:
                if not large:  # the FP32 graph too, to tell rounding to FP16 from everything else
                    save_graph(graph, folder / "fp32.onnx")
                    compared.append(("fp32", folder / "fp32.onnx"))
                to_fp16(graph, plan)
                drop_unused_weights(graph)
            on_stage("write", "model.onnx, audio.onnx, golden samples")
        save_graph(graph, folder / "model.onnx")
        operators = operator_counts(graph)
        release_graph(graph)
        if large:
            free_weights(deploy)
        audio = DeployAudioEncoder(model.audio_encoder).eval()
        audio_graph = graph_from_module(
            audio, (torch.zeros(1, 16000),), inputs=["waveform"], output="audio_embedding"
        )
        save_graph(audio_graph, folder / "audio.onnx")
        release_graph(audio_graph)
        golden_entry = write_golden(folder, golden)
        if large:
            free_weights(model)
        eager = None if large else eager_pipeline(model, batch=options.batch)
        del graph, audio_graph, audio, deploy, model
        gc.collect()

        on_stage("prove", "parity and speed against eager")
        entries = choose_entries(options, compared, folder, large=large)
        proved = prove_entries(
            config, golden, eager, eager_mb, entries, folder,
            batch=options.batch, rounds=options.rounds, threads=options.threads,
            on_entry=countdown(on_stage, "prove", "graphs", len(entries)),
        )  # fmt: skip
        rows = proved.rows
        precision: dict[str, Any] = plan.to_dict() if plan else {"precision": "fp32"}
        outcome = None
        if quant is not None:
            outcome = judge(quant, found, proved, entries, golden, nodes, folder, options)
            precision = outcome.manifest
        for path in folder.glob("fp*.onnx*"):
            path.unlink()
        note = footnote(rows, f"{options.data} (golden)", interleaved=eager is not None)
        write_report(
            folder,
            rows,
            title=f"{config.name} {config.res} px {options.precision}",
            note=note,
            extra={"merge": proof.to_dict(), "precision": precision, "operators": operators}
            | (outcome.report if outcome else {}),
            sections=outcome.sections if outcome else (),
        )
        Manifest(
            config=config,
            precision=precision,
            model=model_spec(config, options.batch),
            audio=audio_spec(),
            files=record_files(folder),
            golden={**golden_entry, "budget": asdict(options.budget)},
            merge=proof.to_dict(),
            source=_source(options),
            versions=versions(),
            conformance=conformance,
        ).write(folder)
        for row in rows:
            if row.parity is not None and row.precision == options.precision:
                row.parity.require(
                    options.budget,
                    what=f"{row.backend} {row.precision} is over the parity budget; "
                    "no bundle was written",
                    hint="keep products in float by --max-drop, or allow more by --min-agreement"
                    if quant
                    else "export with --fp32, or allow more: --min-agreement, --max-logit-error",
                    details=outcome.why if outcome else (),
                )
    lines = outcome.lines if outcome else ()
    return ExportResult(options.folder, tuple(rows), note, proof, floats, lines)


def _fp16_file(traced: Path, plan: PrecisionPlan) -> Path:
    """The FP16 graph of the same model, for the table."""
    graph = ir.load(traced)
    to_fp16(graph, plan)
    drop_unused_weights(graph)
    path = traced.with_name("fp16.onnx")
    save_graph(graph, path)
    return path


def _plan(
    model: SaveModel, deploy: DeployModel, options: ExportOptions, *, n: int
) -> PrecisionPlan:
    """FP32 islands from ranges on pairs of another split than the golden ones."""
    pairs = collect_pairs(open_dataset(options.data, split="val"), n, res=options.res)
    pipeline = eager_pipeline(model)
    inputs = (
        (torch.from_numpy(as_batch(image)), torch.from_numpy(pipeline.embed(waveform)))
        for image, waveform in zip(pairs.image, pairs.waveform, strict=True)
    )
    return plan_fp16(deploy, inputs)


def _example(config: SaveConfig, batch: int) -> tuple[torch.Tensor, ...]:
    """Zeros of the model graph's input shapes."""
    return tuple(
        torch.zeros(s.shape, dtype=getattr(torch, s.dtype))
        for s in model_spec(config, batch).inputs
    )


def _source(options: ExportOptions) -> dict[str, Any]:
    """Which checkpoint this is, by name and hash."""
    files = [options.checkpoint or builtin_path()] + ([options.sam] if options.sam else [])
    return {
        "files": [{"name": f.name, "sha256": sha256_of(f), "size": f.stat().st_size} for f in files]
    }


def low_memory(config: SaveConfig, weight_bytes: int) -> bool:
    """True when weights and the scores of one global block, which rule at 1024 px, are too much to
    hold an eager model and a session at once."""
    return weight_bytes + score_bytes(config) > LARGE_BYTES


def score_bytes(config: SaveConfig) -> int:
    """One score tensor of a global block, float32, one frame."""
    return 4 * config.num_heads * config.grid**4


def _weight_bytes(model: SaveModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
