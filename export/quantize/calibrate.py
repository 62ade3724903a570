"""Model and pairs -> calibration table, in one pass that can be taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from save_deploy import __version__, interrupt
from save_deploy.calibration.channels import Channels
from save_deploy.calibration.histogram import METHODS, Histogram
from save_deploy.calibration.observe import Observer, observe
from save_deploy.calibration.select import Selection
from save_deploy.calibration.table import CalibrationTable, Smoothing, TensorRange
from save_deploy.errors import DataError, ExportError
from save_deploy.export.merge.block import DeployBlock
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.quantize.products import EncoderProduct, find_products
from save_deploy.export.quantize.smooth import WORTH, can_smooth, choose_smoothing, product_error
from save_deploy.export.quantize.weights import FORMATS, quantize_weight, scale_of
from save_deploy.machine import versions
from save_deploy.model.save import SaveModel
from save_deploy.runtime.eager import eager_pipeline

DEFAULT_METHOD = "minmax"
SAVE_EVERY_S = 5.0
_CORRECTED = ("attn.proj", "mlp.lin1", "mlp.lin2")  # their bias stands right behind the product


def model_entry(model: SaveModel) -> dict[str, Any]:
    """Name, resolution and a hash of configuration and weights: what a table belongs to."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().numpy()).data)
    config = model.config
    return {"name": config.name, "res": config.res, "sha256": digest.hexdigest()}


def calibrate(
    model: SaveModel, deploy: DeployModel, selection: Selection, *,
    method: str = DEFAULT_METHOD, smooth: bool = True, state: Path | None = None,
    kept: Path | None = None,
    on_pair: Callable[..., object] = lambda *_, **__: None,
    on_tensor: Callable[..., object] = lambda *_, **__: None,
) -> CalibrationTable:  # fmt: skip
    """Ranges of every encoder product by every method, smoothing and means, from one pass.

    deploy: the merged model, not smoothed, in Forms.quantizable(). state: a file that an interrupted
    pass is taken up from; it is deleted at the end. Where it cannot be written the pass goes on
    without, and says so on stderr. kept: a folder where the finished table is put, and taken from when
    all is the same: what comes after it may be interrupted, and goes on with the same digits.
    on_pair(text, n=...) is told how many pairs are done; on_tensor() that ranges, smoothing and bias
    correction of one product's input are.
    Raises DataError for a tensor that is NaN, infinite, or zero throughout, ExportError for one too
    large for a scale.
    """
    entry = model_entry(model)
    key = f"{entry['sha256']} {selection.pairs.sha256} {deploy.forms}"
    data = _data_entry(selection)
    finished = None
    if kept is not None:
        parts = (key, json.dumps(data, sort_keys=True), method, str(smooth), __version__)
        finished = kept / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:24]}.json"
        if (table := _read(finished)) is not None:
            interrupt.keep()
            on_pair("measured by an earlier run", n=len(selection.pairs))
            return table
    products = find_products(deploy)
    linears = [p.name for p in products if p.branch != "adapter"]
    observer = Observer(
        deploy, [p.name for p in products], channels=linears, n_pairs=len(selection.pairs)
    )
    if state is not None and observer.resume(state, key):
        interrupt.keep()
        on_pair(n=observer.seen)
    saver = _Saver(observer, state, key)

    def after_pair() -> None:
        saver()
        on_pair(n=1)

    observe(deploy, observer, _inputs(model, selection, observer.seen), on_pair=after_pair)
    table = _table(deploy, products, observer, entry, data, method, smooth, on_tensor)
    if finished is not None:
        with contextlib.suppress(ExportError):  # a full disk: measured again the next time
            table.write(finished)
            interrupt.keep()
    saver.done()
    return table


def _read(path: Path) -> CalibrationTable | None:
    """None where there is none, or a damaged one: measured again."""
    try:
        return CalibrationTable.read(path)
    except DataError:
        return None


class _Saver:
    """Writes the state between pairs: not more often than writing takes a twentieth of the time."""

    def __init__(self, observer: Observer, path: Path | None, key: str) -> None:
        self.observer, self.path, self.key = observer, path, key
        self.written, self.pause = time.monotonic(), SAVE_EVERY_S

    def __call__(self) -> None:
        start = time.monotonic()
        if self.path is None or start - self.written < self.pause:
            return
        try:
            if not os.access(self.path.parent, os.W_OK):
                raise PermissionError(f"{self.path.parent} cannot be written to")
            self.observer.save(self.path, self.key)
            interrupt.keep()
        except OSError as error:  # a read-only cache, a full disk: only resuming needs the file
            why = error.strerror or error
            print(f"\nan interrupted calibration could not be resumed: {why}", file=sys.stderr)
            self.path = None
            return
        self.written = time.monotonic()
        self.pause = max(SAVE_EVERY_S, 20 * (self.written - start))

    def done(self) -> None:
        """Nothing is left to be resumed."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def _inputs(model: SaveModel, selection: Selection, first: int) -> Iterator[tuple[Tensor, ...]]:
    """Of pair `first` and all behind it: embedding a sound that is not needed takes as long."""
    pipeline = eager_pipeline(model)
    pairs = selection.pairs
    for image, waveform in zip(pairs.image[first:], pairs.waveform[first:], strict=True):
        yield torch.from_numpy(image[None]), torch.from_numpy(pipeline.embed(waveform))


def _table(
    deploy: DeployModel, products: tuple[EncoderProduct, ...], observer: Observer,
    entry: dict[str, Any], data: dict[str, Any], method: str, smooth: bool,
    on_tensor: Callable[..., object],
) -> CalibrationTable:  # fmt: skip
    tensors: dict[str, TensorRange] = {}
    smoothing: dict[str, Smoothing] = {}
    means: dict[str, tuple[float, ...]] = {}
    for product in products:
        histogram = observer.histograms[product.name]
        channels = observer.channels.get(product.name)
        # refuses zeros throughout, and what no scale holds, by name
        scale_of(histogram.amax("minmax"), FORMATS["int8"], name=f"the input of {product.name}")
        measured = _range(histogram)
        if channels is not None:
            weight = _weight(deploy, product.name)
            scale = np.ones(len(channels.amax), np.float32)
            block = cast(DeployBlock, deploy.blocks[product.block])
            if smooth and product.norm and can_smooth(block, product.norm.rpartition(".")[2]):
                found = choose_smoothing(channels, weight)
                if found is not None:
                    smoothing[product.norm], scale = found, found.scale
                    measured = _rescaled(product.name, channels, scale)
            if product.name.endswith(_CORRECTED):
                mean = channels.mean / scale
                if _bias_helps(
                    channels.rows / scale, weight * scale[:, None], mean, measured.amax[method]
                ):
                    means[product.name] = tuple(mean)
        tensors[product.name] = measured
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
    """(K,N)."""
    module = cast(nn.Linear, deploy.get_submodule(name))
    return module.weight.detach().float().numpy().T


def _range(histogram: Histogram) -> TensorRange:
    return TensorRange({m: histogram.amax(m) for m in METHODS}, histogram.summary())


def _rescaled(name: str, channels: Channels, scale: NDArray[np.float32]) -> TensorRange:
    """Of the tensor divided by scale: the maximum is exact, all else is of the sampled rows.

    Every channel's maximum among the rows would be a value in five hundred where it is one in
    thousands, and pull every method but min-max towards min-max.
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
    """Whether the correction lowers the squared error of the sampled rows' products."""
    numbers, scales = quantize_weight(weight, FORMATS["int8"], clips=(1.0,))
    shift = -(mean @ (numbers.astype(np.float32) * scales - weight))
    return product_error(rows, weight, amax, shift=shift) < WORTH * product_error(
        rows, weight, amax
    )
