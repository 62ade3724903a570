"""The main job: checkpoint -> proven bundle. One straight line, stage by stage."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from save_deploy.calibration.pairs import collect_pairs
from save_deploy.checkpoints import builtin_path, load_model
from save_deploy.config import SaveConfig, check_resolution
from save_deploy.data.open import open_dataset
from save_deploy.errors import ParityError
from save_deploy.export.atomic import check_target, new_folder
from save_deploy.export.audio_graph import DeployAudioEncoder
from save_deploy.export.golden import Golden, predict_golden, run_golden, write_golden
from save_deploy.export.memory import free_weights, page_out
from save_deploy.export.merge import DeployModel, Forms, MergeProof, forms_for, merge
from save_deploy.export.onnx_export import (
    graph_from_module,
    operator_counts,
    release_graph,
    save_graph,
)
from save_deploy.export.precision import PrecisionPlan, drop_unused_weights, plan_fp16, to_fp16
from save_deploy.manifest import Manifest, record_files, sha256_of
from save_deploy.metrics.latency import LatencyResult, speedup
from save_deploy.metrics.parity import ParityBudget, parity
from save_deploy.metrics.segmentation import score_videos
from save_deploy.model.save import SaveModel
from save_deploy.runtime.compare import Row
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.report import footnote, write_report
from save_deploy.runtime.session import as_batch, available_backends, open_session
from save_deploy.runtime.timing import time_interleaved, versions
from save_deploy.specs import Arrays, audio_spec, model_spec

# Above this the eager model and a session are not held in memory together: eager is timed before.
LARGE_BYTES = 2_000_000_000
STAGES = ("load", "golden", "merge", "precision", "trace", "write", "prove")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export and how. checkpoint None: the built-in one; data: see `data/open.py`."""

    checkpoint: Path | None = None
    sam: Path | None = None
    res: int = 256
    precision: str = "fp32"
    batch: int = 1
    target: str = "portable"
    without: tuple[str, ...] = ()
    data: str = "scenes"
    n_golden: int = 8
    out: Path | None = None
    force: bool = False
    rounds: int = 20
    threads: int | None = None
    max_abs_err: float | None = None
    min_agreement: float | None = None

    @property
    def folder(self) -> Path:
        stem = (self.checkpoint or Path("save_vit_t")).stem
        clip = "" if self.batch == 1 else f"_x{self.batch}"
        return self.out or Path(f"{stem}_{self.res}_{self.precision}{clip}")

    @property
    def forms(self) -> Forms:
        return forms_for(self.target, res=self.res).without(*self.without)

    @property
    def budget(self) -> ParityBudget:
        default = ParityBudget.for_precision(self.precision)
        return ParityBudget(
            max_abs_err=default.max_abs_err if self.max_abs_err is None else self.max_abs_err,
            min_agreement=default.min_agreement
            if self.min_agreement is None
            else self.min_agreement,
        )


@dataclass(frozen=True)
class ExportResult:
    """The bundle's folder and its comparison against eager."""

    folder: Path
    rows: tuple[Row, ...]
    note: str
    proof: MergeProof
    plan: PrecisionPlan | None


def export_bundle(
    options: ExportOptions, *, on_stage: Callable[[str, str], None] = lambda *_: None
) -> ExportResult:
    """Make the bundle. on_stage(stage, detail) reports progress.

    Raises SaveDeployError for the user's mistakes, ParityError when the bundle is over budget; in
    both cases nothing is left at the target.
    """
    check_resolution(options.res)
    forms = options.forms
    check_target(options.folder, force=options.force)
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
    )

    if large:
        page_out(model)
    on_stage("merge", "exact rewrites, each compared in float64")
    deploy, proof = merge(model, forms)
    if not proof.exact:
        raise ParityError(
            "a rewrite is not exact", got=str([r for r in proof.rewrites if not r.exact])
        )

    if large:
        page_out(model)
    plan = None
    if options.precision == "fp16":
        on_stage("precision", "measuring ranges")
        plan = _plan(model, deploy, options, n=1 if large else options.n_golden)

    if large:
        page_out(model)
    with new_folder(options.folder) as folder:
        on_stage("trace", f"{config.name} at {config.res} px")
        graph = graph_from_module(
            deploy,
            _example(config, options.batch),
            inputs=[i.name for i in model_spec(config).inputs],
            output="mask_logits",
        )
        onnx_rows: list[tuple[str, Path]] = []
        if plan is not None:
            if not large:  # the FP32 graph too, to tell rounding to FP16 from everything else
                save_graph(graph, folder / "fp32.onnx")
                onnx_rows.append(("fp32", folder / "fp32.onnx"))
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
        onnx_rows.append((options.precision, folder / "model.onnx"))
        if large:
            free_weights(model)
        eager = None if large else eager_pipeline(model, batch=options.batch)
        del graph, audio_graph, audio, deploy, model
        gc.collect()

        on_stage("prove", "parity and speed against eager")
        rows = _prove(config, golden, eager, eager_mb, onnx_rows, folder, options)
        (folder / "fp32.onnx").unlink(missing_ok=True)
        note = footnote(rows, f"{options.data} (golden)", interleaved=eager is not None)
        title = f"{config.name} {config.res} px {options.precision}"
        write_report(
            folder,
            rows,
            title=title,
            note=note,
            extra={
                "merge": proof.to_dict(),
                "precision": plan.to_dict() if plan else {"precision": "fp32"},
                "operators": operators,
            },
        )
        Manifest(
            config=config,
            precision=plan.to_dict() if plan else {"precision": "fp32"},
            model=model_spec(config, options.batch),
            audio=audio_spec(),
            files=record_files(folder),
            golden={**golden_entry, "budget": asdict(options.budget)},
            merge=proof.to_dict(),
            source=_source(options),
            versions=versions(),
        ).write(folder)
        for row in rows:
            if row.parity is not None and row.precision == options.precision:
                row.parity.require(
                    options.budget,
                    what=f"{row.backend} {row.precision} is over the parity budget; "
                    "no bundle was written",
                    hint="export with --fp32, or allow more: --min-agreement, --max-logit-error",
                )
    return ExportResult(options.folder, tuple(rows), note, proof, plan)


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


def _prove(
    config: SaveConfig,
    golden: Golden,
    eager: SavePipeline | None,
    eager_mb: float,
    onnx_rows: list[tuple[str, Path]],
    folder: Path,
    options: ExportOptions,
) -> list[Row]:
    """Rows of the table: eager first, the bundle's own graph last."""
    backends = available_backends() if eager is not None else ("onnxruntime",)
    entries = [("onnxruntime", *row) for row in onnx_rows[:-1]]
    entries += [(backend, *onnx_rows[-1]) for backend in sorted(backends, reverse=True)]
    pipelines = [
        SavePipeline(
            config=config,
            precision=precision,
            audio=open_session(
                backend, folder / "audio.onnx", audio_spec(), threads=options.threads
            ),
            model=open_session(
                backend,
                path,
                model_spec(config, options.batch),
                threads=options.threads,
                low_memory=eager is None,
            ),
        )
        for backend, precision, path in entries
    ]
    logits = [predict_golden(pipeline, golden.pairs) for pipeline in pipelines]
    chosen = np.arange(options.batch) % len(golden.pairs)
    inputs: Arrays = {
        "image": golden.pairs.image[chosen],
        "audio_embedding": golden.audio_embedding[chosen],
    }
    calls = {
        f"{backend} {precision}": (lambda p=pipeline: p.model.infer(inputs))
        for (backend, precision, _), pipeline in zip(entries, pipelines, strict=True)
    }
    if eager is None:
        latency = time_interleaved(
            calls, rounds=len(golden.pairs) + 2, warmup=0, batch=options.batch
        )
        reference = golden.eager_latency
    else:
        latency = time_interleaved(
            {"eager": lambda: eager.model.infer(inputs), **calls},
            rounds=options.rounds,
            batch=options.batch,
        )
        reference = latency["eager"]

    def row(
        backend: str, precision: str, size_mb: float, taken: LatencyResult, predicted: Any
    ) -> Row:
        videos = [(p[None], t[None]) for p, t in zip(predicted, golden.pairs.truth, strict=True)]
        return Row(
            backend=backend,
            precision=precision,
            size_mb=size_mb,
            latency=taken,
            speedup=speedup(reference, taken)
            if eager is not None
            else reference.p50_ms / taken.p50_ms,
            score=score_videos(videos),
            parity=None if backend == "eager" else parity(golden.mask_logits, predicted),
        )

    rows = [row("eager", "fp32", eager_mb, reference, golden.mask_logits)]
    for (backend, precision, path), pipeline, predicted in zip(
        entries, pipelines, logits, strict=True
    ):
        size = sum(
            f.stat().st_size
            for f in folder.iterdir()
            if f.name.startswith((path.name, "audio.onnx"))
        )
        taken = latency[f"{backend} {precision}"]
        rows.append(row(backend, precision, size / 1e6, taken, predicted))
        pipeline.close()
    return rows


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
