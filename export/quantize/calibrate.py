"""Model and pairs -> calibration table, in one pass that can be taken up again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from save_deploy.calibration.channels import Channels
from save_deploy.calibration.histogram import METHODS, Histogram
from save_deploy.calibration.observe import Observer, observe
from save_deploy.calibration.select import Selection
from save_deploy.calibration.table import CalibrationTable, Smoothing, TensorRange
from save_deploy.export.merge import DeployModel
from save_deploy.export.merge.block import DeployBlock
from save_deploy.export.quantize.products import EncoderProduct, find_products
from save_deploy.export.quantize.smooth import WORTH, can_smooth, choose_smoothing, product_error
from save_deploy.export.quantize.weights import FORMATS, quantize_weight
from save_deploy.model.save import SaveModel
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.timing import versions

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
    on_pair: Callable[..., object] = lambda *_, **__: None,
) -> CalibrationTable:  # fmt: skip
    """Ranges of every encoder product by every method, smoothing and means, from one pass.

    deploy: the merged model, not smoothed, in Forms.quantizable(). state: a file that an interrupted
    pass is taken up from; it is deleted at the end. on_pair(n=...) is told how many pairs are done.
    Raises DataError for a tensor that is NaN, infinite, or zero throughout.
    """
    entry = model_entry(model)
    products = find_products(deploy)
    linears = [p.name for p in products if p.branch != "adapter"]
    observer = Observer(
        deploy, [p.name for p in products], channels=linears, n_pairs=len(selection.pairs)
    )
    key = f"{entry['sha256']} {selection.pairs.sha256} {deploy.forms}"
    if state is not None and observer.resume(state, key):
        on_pair(n=observer.seen)
    saver = _Saver(observer, state, key)

    def after_pair() -> None:
        saver()
        on_pair(n=1)

    observe(deploy, observer, _inputs(model, selection), on_pair=after_pair)
    table = _table(deploy, products, observer, entry, selection, method, smooth)
    if state is not None:
        state.unlink(missing_ok=True)
    return table


class _Saver:
    """Writes the state between pairs: not more often than writing takes a twentieth of the time."""

    def __init__(self, observer: Observer, path: Path | None, key: str) -> None:
        self.observer, self.path, self.key = observer, path, key
        self.written, self.pause = time.monotonic(), SAVE_EVERY_S

    def __call__(self) -> None:
        start = time.monotonic()
        if self.path is None or start - self.written < self.pause:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.observer.save(self.path, self.key)
        self.written = time.monotonic()
        self.pause = max(SAVE_EVERY_S, 20 * (self.written - start))


def _inputs(model: SaveModel, selection: Selection) -> Iterator[tuple[Tensor, ...]]:
    pipeline = eager_pipeline(model)
    pairs = selection.pairs
    for image, waveform in zip(pairs.image, pairs.waveform, strict=True):
        yield torch.from_numpy(image[None]), torch.from_numpy(pipeline.embed(waveform))


def _table(
    deploy: DeployModel, products: tuple[EncoderProduct, ...], observer: Observer,
    entry: dict[str, Any], selection: Selection, method: str, smooth: bool,
) -> CalibrationTable:  # fmt: skip
    tensors: dict[str, TensorRange] = {}
    smoothing: dict[str, Smoothing] = {}
    means: dict[str, tuple[float, ...]] = {}
    for product in products:
        histogram = observer.histograms[product.name]
        channels = observer.channels.get(product.name)
        if channels is not None:
            histogram.amax("minmax")  # refuses a tensor of zeros, by name
            weight = _weight(deploy, product.name)
            scale = np.ones(len(channels.amax), np.float32)
            block = cast(DeployBlock, deploy.blocks[product.block])
            if smooth and product.norm and can_smooth(block, product.norm.rpartition(".")[2]):
                found = choose_smoothing(channels, weight)
                if found is not None:
                    smoothing[product.norm], scale = found, found.scale
                    histogram = _rescaled(histogram, channels, scale)
            if product.name.endswith(_CORRECTED):
                mean = channels.mean / scale
                if _bias_helps(
                    channels.rows / scale, weight * scale[:, None], mean, histogram.amax(method)
                ):
                    means[product.name] = tuple(mean)
        tensors[product.name] = TensorRange(
            {m: histogram.amax(m) for m in METHODS}, histogram.summary()
        )
    return CalibrationTable(
        model=entry,
        data={**_data_entry(selection), "batches": len(selection.pairs)},
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


def _rescaled(
    histogram: Histogram, channels: Channels, scale: NDArray[np.float32]
) -> Histogram:  # fmt: skip
    """Of the tensor divided by scale: the sampled rows, and every channel's exact largest value."""
    made = Histogram(histogram.name)
    made.add(channels.rows / scale)
    made.add(channels.amax / scale)
    return made


def _bias_helps(
    rows: NDArray[np.float32], weight: NDArray[np.float32], mean: NDArray[np.float64], amax: float
) -> bool:
    """Whether the correction lowers the squared error of the sampled rows' products."""
    numbers, scales = quantize_weight(weight, FORMATS["int8"], clips=(1.0,))
    shift = -(mean @ (numbers.astype(np.float32) * scales - weight))
    return product_error(rows, weight, amax, shift=shift) < WORTH * product_error(
        rows, weight, amax
    )
