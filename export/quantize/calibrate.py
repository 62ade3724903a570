"""Measurement of a calibration table in one pass over the pairs, resumable after an interrupt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from save_deploy.calibration.channels import Channels
from save_deploy.calibration.histogram import Histogram
from save_deploy.calibration.methods import METHODS
from save_deploy.calibration.observe import Observer, observe
from save_deploy.calibration.overlap import refuse_overlap, refuse_test_clips, refuse_test_names
from save_deploy.calibration.pairs import Pairs
from save_deploy.calibration.select import Selection, select_pairs
from save_deploy.calibration.table import CalibrationTable, Smoothing, TensorRange
from save_deploy.checkpoints import load_model
from save_deploy.config import check_resolution
from save_deploy.errors import DataError, ExportError, OutputError
from save_deploy.export.merge.block import DeployBlock
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import forms_for
from save_deploy.export.options import CalibrationOptions, ExportOptions
from save_deploy.export.quantize.plan import ReusedChoice
from save_deploy.export.quantize.sites import MatMulSite, find_sites
from save_deploy.export.quantize.smooth import WORTH, can_smooth, choose_smoothing, product_error
from save_deploy.export.quantize.weights import FORMATS, quantize_weight, scale_of
from save_deploy.files import cache_folder, cache_root, check_file_target
from save_deploy.machine import version, versions
from save_deploy.model.save import SaveModel
from save_deploy.progress import countdown, resumable
from save_deploy.runtime.eager import eager_pipeline

OnStage = Callable[[str, str], None]
CALIBRATE_STAGES = ("load", "merge", "calibrate")
DEFAULT_METHOD = "minmax"
SAVE_EVERY_S = 5.0
_CORRECTED = ("attn.proj", "mlp.lin1", "mlp.lin2")  # MatMuls directly followed by a bias


def calibrate_checkpoint(
    checkpoint: Path | None, sam: Path | None, res: int, options: CalibrationOptions, out: Path, *,
    force: bool = False, threads: int | None = None, on_stage: OnStage = lambda *_: None,
) -> CalibrationTable:  # fmt: skip
    """Measure the calibration table of a checkpoint and write it to `out`."""
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
    """Select pairs, check that accuracy is not measured on them, and measure their ranges.

    data: dataset for options that name none.
    golden: golden samples, which must not be among the pairs.
    The same call resumes an interrupted pass, and loads the table of a finished one.
    """
    name = options.data or data
    res = model.config.res
    advance = countdown(on_stage, "calibrate", f"reading clips of {name}", 3 * options.pairs)
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
        storage=Storage(
            state=cache / f"{selection.pairs.sha256[:16]}_{res}.npz",
            kept=cache_folder("calibration"),
        ),
        on_pair=countdown(on_stage, "calibrate", "pairs", len(selection.pairs)),
        on_tensor=countdown(
            on_stage, "calibrate", "smoothing and bias correction", len(find_sites(deploy))
        ),
    )


def obtain_table(
    model: SaveModel, deploy: DeployModel, options: ExportOptions, golden: Pairs, *,
    on_stage: OnStage,
) -> CalibrationTable:  # fmt: skip
    """Return the table of the options, read or measured.

    A table that is read is checked against the model and the golden samples.
    """
    if options.measures_ranges:
        on_stage("calibrate", "choosing pairs")
        return measure_table(
            model, deploy, options.calibration, options.data, golden=golden, on_stage=on_stage
        )
    on_stage("calibrate", f"ranges of {options.calibration.table or options.search.reuse}")
    if options.calibration.table is not None:
        table = CalibrationTable.read(options.calibration.table)
    else:
        assert options.search.reuse is not None
        table = ReusedChoice.read(options.search.reuse).table
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
                expected="golden samples other than the calibration pairs",
                hint="another --data, or a table of other pairs",
            )
    return table


def model_entry(model: SaveModel) -> dict[str, Any]:
    """Return name, resolution and hash of a model: the identity that a table stores.

    The hash is over configuration and weights.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().numpy()).data)
    config = model.config
    return {"name": config.name, "res": config.res, "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class Storage:
    """Files of a calibration.

    state: file that an interrupted pass resumes from, deleted at the end. When it cannot be
        written, the pass continues without it and prints a line to stderr.
    kept: cache folder. The same model, data and options load the identical table from it instead of
        measuring again.
    """

    state: Path | None = None
    kept: Path | None = None


def calibrate(
    model: SaveModel, deploy: DeployModel, selection: Selection, *,
    method: str = DEFAULT_METHOD, smooth: bool = True, storage: Storage = Storage(),
    on_pair: Callable[..., object] = lambda *_, **__: None,
    on_tensor: Callable[..., object] = lambda *_, **__: None,
) -> CalibrationTable:  # fmt: skip
    """Measure ranges of every encoder MatMul by every method, smoothing and means, in one pass.

    deploy: the merged model without smoothing, in Forms.quantizable().
    on_pair: called as on_pair(text, n=number of finished pairs).
    on_tensor: called after ranges, smoothing and bias correction of each MatMul input.
    Raises Resumable for an interrupt after which the pass can be resumed, DataError for a tensor
    with NaN, infinity or only zeros, and ExportError for a tensor too large for a scale.
    """
    entry = model_entry(model)
    made_by = version("save-deploy")
    key = f"{entry['sha256']} {selection.pairs.sha256} {deploy.forms} {made_by}"
    data = _data_entry(selection)
    finished = None
    if storage.kept is not None:
        parts = (key, json.dumps(data, sort_keys=True), method, str(smooth))
        finished = (
            storage.kept / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:24]}.json"
        )
        if (table := _read(finished)) is not None:
            on_pair("measured by an earlier run", n=len(selection.pairs))
            return table
    sites = find_sites(deploy)
    linears = [s.name for s in sites if s.branch != "adapter"]
    observer = Observer(
        deploy, [s.name for s in sites], channels=linears, n_pairs=len(selection.pairs)
    )
    saver = _Saver(observer, storage.state, key)
    if saver.kept:
        on_pair(n=observer.seen)

    def after_pair() -> None:
        saver()
        on_pair(n=1)

    with resumable(lambda: saver.kept):
        observe(deploy, observer, _inputs(model, selection, observer.seen), on_pair=after_pair)
        table = _table(deploy, sites, observer, entry, data, method, smooth, on_tensor)
        if finished is not None:
            with contextlib.suppress(
                OutputError, ExportError
            ):  # disk full: the next run measures again
                table.write(finished)
        saver.done()
    return table


def _read(path: Path) -> CalibrationTable | None:
    """Return the table of a file, or None when it is missing or damaged."""
    try:
        return CalibrationTable.read(path)
    except DataError:
        return None


class _Saver:
    """Saves the state between pairs, at intervals that keep saving below 5 % of the time."""

    def __init__(self, observer: Observer, path: Path | None, key: str) -> None:
        self.observer, self.path, self.key = observer, path, key
        self.written, self.pause = time.monotonic(), SAVE_EVERY_S
        self.kept = path is not None and observer.resume(path, key)

    def __call__(self) -> None:
        start = time.monotonic()
        if self.path is None or start - self.written < self.pause:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path.parent, os.W_OK):
                raise PermissionError(f"{self.path.parent} cannot be written to")
            self.observer.save(self.path, self.key)
            self.kept = True
        except (OSError, OutputError) as error:  # read-only cache or full disk
            why = error.got if isinstance(error, OutputError) else error.strerror or error
            print(
                f"\nthis calibration cannot be resumed after an interrupt: {why}", file=sys.stderr
            )
            self.path = None
            return
        self.written = time.monotonic()
        self.pause = max(SAVE_EVERY_S, 20 * (self.written - start))

    def done(self) -> None:
        """Delete the state."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def _inputs(model: SaveModel, selection: Selection, first: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield the model inputs of the pairs from `first` on. Embeds only these, as it takes time."""
    pipeline = eager_pipeline(model)
    pairs = selection.pairs
    for image, waveform in zip(pairs.image[first:], pairs.waveform[first:], strict=True):
        yield torch.from_numpy(image[None]), torch.from_numpy(pipeline.embed(waveform))


def _table(
    deploy: DeployModel, sites: tuple[MatMulSite, ...], observer: Observer,
    entry: dict[str, Any], data: dict[str, Any], method: str, smooth: bool,
    on_tensor: Callable[..., object],
) -> CalibrationTable:  # fmt: skip
    """Return the table of the observed ranges, with smoothing and bias correction."""
    tensors: dict[str, TensorRange] = {}
    smoothing: dict[str, Smoothing] = {}
    means: dict[str, tuple[float, ...]] = {}
    for site in sites:
        histogram = observer.histograms[site.name]
        channels = observer.channels.get(site.name)
        # raises, naming the tensor, for all zeros and for values too large for a scale
        scale_of(histogram.amax("minmax"), FORMATS["int8"], name=f"the input of {site.name}")
        measured = _range(histogram)
        if channels is not None:
            weight = _weight(deploy, site.name)
            scale = np.ones(len(channels.amax), np.float32)
            block = cast(DeployBlock, deploy.blocks[site.block])
            if smooth and site.norm and can_smooth(block, site.norm.rpartition(".")[2]):
                found = choose_smoothing(channels, weight)
                if found is not None:
                    smoothing[site.norm], scale = found, found.scale
                    measured = _rescaled(site.name, channels, scale)
            if site.name.endswith(_CORRECTED):
                mean = channels.mean / scale
                if _bias_helps(
                    channels.rows / scale, weight * scale[:, None], mean, measured.amax[method]
                ):
                    means[site.name] = tuple(mean)
        tensors[site.name] = measured
        on_tensor()
    return CalibrationTable(
        model=entry,
        data={**data, "batches": data["pairs"]},
        method=method,
        tensors=tensors,
        smoothing=smoothing,
        means=means,
        versions=versions(),
    )


def _data_entry(selection: Selection) -> dict[str, Any]:
    entry = selection.to_dict()
    entry["source"] = Path(entry["source"]).name if "/" in entry["source"] else entry["source"]
    return entry


def _weight(deploy: DeployModel, name: str) -> NDArray[np.float32]:
    """Return the weight of a MatMul, float32 (K,N)."""
    module = cast(nn.Linear, deploy.get_submodule(name))
    return module.weight.detach().float().numpy().T


def _range(histogram: Histogram) -> TensorRange:
    return TensorRange({m: histogram.amax(m) for m in METHODS}, histogram.summary())


def _rescaled(name: str, channels: Channels, scale: NDArray[np.float32]) -> TensorRange:
    """Return the range of an input divided by scale: exact maximum, other values from sampled rows.

    The sampled rows do not include the rows of the channel maxima: they would be 1 value in 500
    instead of 1 in thousands, and pull every method towards min-max.
    """
    rows = Histogram(name)
    rows.add(channels.rows / scale)
    found = _range(rows)
    top = float((channels.amax / scale).max())
    return TensorRange(
        found.amax | {"minmax": top}, found.histogram | {"max": float(f"{top:.5g}")}, sampled=True
    )


def _bias_helps(
    rows: NDArray[np.float32], weight: NDArray[np.float32], mean: NDArray[np.float64], amax: float
) -> bool:
    """Return True when the correction lowers the squared output error on the sampled rows."""
    numbers, scales = quantize_weight(weight, FORMATS["int8"], clips=(1.0,))
    shift = -(mean @ (numbers.astype(np.float32) * scales - weight))
    return product_error(rows, weight, amax, shift=shift) < WORTH * product_error(
        rows, weight, amax
    )
