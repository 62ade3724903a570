"""The stages that 8 bits add to an export: ranges, smoothing, which products stay in float."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from save_deploy.bundle import model_spec, sha256_of
from save_deploy.calibration.overlap import (
    refuse_overlap,
    refuse_test_clips,
    refuse_test_names,
)
from save_deploy.calibration.pairs import Pairs
from save_deploy.calibration.select import is_generated, select_pairs
from save_deploy.calibration.table import CalibrationTable
from save_deploy.calibration.videos import is_videos
from save_deploy.checkpoints import load_model
from save_deploy.config import check_resolution
from save_deploy.data.find import resolve
from save_deploy.errors import DataError, SaveDeployError
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import forms_for
from save_deploy.export.onnx_export import save_graph
from save_deploy.export.options import SEARCH_COSTS, CalibrationOptions, ExportOptions
from save_deploy.export.precision import PrecisionPlan
from save_deploy.export.quantize.calibrate import DEFAULT_METHOD, calibrate, model_entry
from save_deploy.export.quantize.plan import Choice, QuantPlan, quantize_graph, units_of
from save_deploy.export.quantize.products import find_products
from save_deploy.export.quantize.qdq import count_work
from save_deploy.export.quantize.search import (
    Evaluations,
    SearchResult,
    evaluations_key,
    most_steps,
    search,
)
from save_deploy.export.quantize.validation import Scored, Validation, make_validation
from save_deploy.files import cache_folder, cache_root, check_file_target
from save_deploy.machine import describe as machine
from save_deploy.machine import versions
from save_deploy.model.save import SaveModel
from save_deploy.progress import countdown
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import (
    as_batch,
    available_backends,
    default_threads,
    open_session,
)
from save_deploy.runtime.timing import time_interleaved

OnStage = Callable[[str, str], None]
CALIBRATE_STAGES = ("load", "merge", "calibrate")
SEARCH_ROUNDS = 12


def calibrate_checkpoint(
    checkpoint: Path | None, sam: Path | None, res: int, options: CalibrationOptions, out: Path, *,
    force: bool = False, threads: int | None = None, on_stage: OnStage = lambda *_: None,
) -> CalibrationTable:  # fmt: skip
    """The table of a checkpoint, measured and written."""
    check_file_target(out, force=force)
    check_resolution(res)
    torch.set_num_threads(threads or torch.get_num_threads())
    on_stage("load", str(checkpoint or "built-in vit_t"))
    model = load_model(checkpoint, res=res, sam=sam)
    on_stage("merge", "")
    forms = forms_for("portable", res=res).quantizable()
    deploy = DeployModel(model, forms).eval().requires_grad_(False)
    table = measure_table(model, deploy, options, "scenes", on_stage=on_stage)
    table.write(out)
    return table


def measure_table(
    model: SaveModel, deploy: DeployModel, options: CalibrationOptions, data: str, *,
    golden: Pairs | None = None, on_stage: OnStage = lambda *_: None,
) -> CalibrationTable:  # fmt: skip
    """Select pairs, refuse what accuracy is measured on, and run them. data: when options name none.

    An interrupted pass is taken up again by the same call; a finished one is not repeated.
    """
    name = options.data or data
    res = model.config.res
    advance = countdown(on_stage, "calibrate", f"looking at clips of {name}", 3 * options.pairs)
    selection = select_pairs(
        name, options.pairs, res=res, split=options.split, skip_bad=options.skip_bad,
        on_clip=advance,
    )  # fmt: skip
    refuse_test_clips(name, selection)
    refuse_test_names(selection.pairs.names, data, "calibration")
    if golden is not None:
        refuse_overlap(selection, golden, "the golden samples")
    cache = cache_root() / "calibration"
    return calibrate(
        model,
        deploy,
        selection,
        method=options.method or DEFAULT_METHOD,
        smooth=options.smooth,
        state=cache / f"{selection.pairs.sha256[:16]}_{res}.npz",
        kept=cache_folder("calibration"),
        on_pair=countdown(on_stage, "calibrate", "pairs", len(selection.pairs)),
        on_tensor=countdown(
            on_stage, "calibrate", "smoothing and bias correction", len(find_products(deploy))
        ),
    )


def obtain_table(
    model: SaveModel, deploy: DeployModel, options: ExportOptions, golden: Pairs, *,
    on_stage: OnStage,
) -> CalibrationTable:  # fmt: skip
    """The table named by the options, checked against model and golden samples, or a measured one."""
    if options.calibration.table is None and options.search.reuse is None:
        on_stage("calibrate", "choosing pairs")
        return measure_table(
            model, deploy, options.calibration, options.data, golden=golden, on_stage=on_stage
        )
    on_stage("calibrate", f"ranges of {options.calibration.table or options.search.reuse}")
    if options.calibration.table is not None:
        table = CalibrationTable.read(options.calibration.table)
    else:
        assert options.search.reuse is not None
        table = Choice.read(options.search.reuse).table
    entry = model_entry(model)
    table.require_model(entry["sha256"], name=entry["name"], res=entry["res"])
    refuse_test_names(
        table.data["names"], options.data, "the calibration table",
        hint="another --data, or a table of other pairs",
    )  # fmt: skip
    seen = set(table.data["pair_sha256"])
    for name, digest in zip(golden.names, golden.pair_sha256, strict=True):
        if digest in seen:
            raise DataError(
                "the calibration table overlaps the golden samples",
                got=name,
                expected="golden samples that ranges were not measured on",
                hint="another --data, or a table of other pairs",
            )
    return table


def plan_quantization(
    deploy: DeployModel, table: CalibrationTable, options: ExportOptions,
    floats: PrecisionPlan | None,
) -> QuantPlan:  # fmt: skip
    """Everything quantized, or what a reused bundle says."""
    products = find_products(deploy)
    if not products:
        raise SaveDeployError(
            "nothing to quantize", got="an encoder without products", expected="attention and MLP"
        )
    reuse = options.search.reuse
    reused = Choice.read(reuse) if reuse else None
    plan = QuantPlan(
        fmt=options.quantized,
        table=table,
        products=products,
        method=options.calibration.method or (reused.method if reused else table.method),
        floats=floats,
    )
    for product in products:
        table.amax(product.name, plan.method)  # of another kind of model: refused before tracing
    if reused is None:
        return plan
    reused.require_units(products)
    return replace(plan, float_units=reused.float_units, chosen_by=reused.name)


def search_precision(
    model: SaveModel, graph: Path, plan: QuantPlan, options: ExportOptions, *, on_stage: OnStage
) -> tuple[QuantPlan, SearchResult]:  # fmt: skip
    """The cheapest plan within options.search.max_drop. graph: the traced float32 graph."""
    assert options.search.max_drop is not None
    on_stage("search", "the eager model on validation clips")
    name = options.search.data or _searchable(options.calibration.data, options.data)
    validation = make_validation(
        eager_pipeline(model, batch=options.batch), name, options.search.clips, plan.table,
        on_clip=countdown(on_stage, "search", f"eager on val of {name}", options.search.clips),
    )  # fmt: skip
    trial = _Trial(model, graph, plan, validation, options)
    cache = cache_folder("search")
    known = Evaluations(cache and cache / f"{_search_key(graph, plan, trial, options)}.json")
    units = units_of(plan.products)
    advance = countdown(on_stage, "search", "choices", most_steps(len(units)))
    found = search(
        units,
        options.search.max_drop,
        validation.eager,
        evaluate=trial.evaluate,
        costs=trial.costs,
        known=known,
        on_step=advance,
        data=f"{name} val",
        clips=len(validation.sizes),
        frames=sum(validation.sizes),
        backend=trial.backend,
        cost_unit=SEARCH_COSTS[options.search_cost],
    )
    return replace(plan, float_units=found.float_units, chosen_by="search"), found


def _search_key(graph: Path, plan: QuantPlan, trial: _Trial, options: ExportOptions) -> str:
    """Masks and times depend on all of it; the graph is one of a batch, the table one of a model."""
    return evaluations_key(
        sha256_of(graph),
        plan.table.sha256,
        plan.method,
        plan.fmt,
        json.dumps(plan.floats and plan.floats.to_dict(), sort_keys=True),
        trial.validation.sha256,
        trial.backend,
        json.dumps(versions()),  # save-deploy, and the backend under the name of its package
        str(options.threads or default_threads()),
        str(machine()["cpu"]),
    )


def _searchable(calibration: str | None, data: str) -> str:
    """The dataset a search uses when none is named: where pairs came from, if it has a val split."""
    if calibration is None or is_videos(calibration):
        return data
    if is_generated(calibration) or "val" in resolve(calibration).splits:
        return calibration
    return data


class _Trial:
    """Choices of float units as sessions on the preferred backend."""

    def __init__(
        self, model: SaveModel, graph: Path, plan: QuantPlan, validation: Validation,
        options: ExportOptions,
    ) -> None:  # fmt: skip
        self.config, self.graph, self.plan, self.validation = model.config, graph, plan, validation
        self.options, self.memo = options, dict[str, Any]()
        self.audio = eager_pipeline(model).audio  # of the pipelines; embeddings are there already
        self.backend = available_backends()[0]

    def evaluate(self, floats: frozenset[str]) -> Scored:
        with self._open(floats, "choice") as pipeline:
            return self.validation.score(pipeline)

    def costs(self, choices: Mapping[str, frozenset[str]]) -> dict[str, float]:
        """Of several choices of float units: p50 in ms, interleaved, or GMAC."""
        if self.options.search_cost == "work":
            work = count_work(ir.load(self.graph), self.plan.products)
            gmac = lambda floats: sum(n if u in floats else n / 2 for u, n in work.items()) / 1e9
            return {name: gmac(floats) for name, floats in choices.items()}
        if self.graph.with_name(
            f"{self.graph.name}.data"
        ).exists():  # gigabytes: one after the other
            return {k: v for name in choices for k, v in self._time({name: choices[name]}).items()}
        return self._time(choices)

    def _time(self, choices: Mapping[str, frozenset[str]]) -> dict[str, float]:
        opened = {name: self._open(floats, name) for name, floats in choices.items()}
        batch = self.options.batch
        inputs = {
            "image": as_batch(self.validation.images[0]).repeat(batch, axis=0),
            "audio_embedding": self.validation.audio_embedding[:1].repeat(batch, axis=0),
        }
        try:
            taken = time_interleaved(
                {name: partial(p.model.infer, inputs) for name, p in opened.items()},
                rounds=SEARCH_ROUNDS,
                batch=batch,
            )
        finally:
            for pipeline in opened.values():
                pipeline.close()
        return {name: latency.p50_ms for name, latency in taken.items()}

    def _open(self, floats: frozenset[str], name: str) -> SavePipeline:
        path = self.graph.with_name(f"{name}.onnx")
        graph = ir.load(self.graph)
        plan = replace(self.plan, float_units=tuple(floats))
        quantize_graph(graph, plan, memo=self.memo)
        files = save_graph(graph, path)
        try:
            session = open_session(
                self.backend, path, model_spec(self.config, self.options.batch),
                threads=self.options.threads,
            )  # fmt: skip
        finally:
            for file in files:
                file.unlink()
        return SavePipeline(
            config=self.config, precision=self.options.precision, audio=self.audio, model=session
        )
