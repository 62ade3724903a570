"""Evaluation of one precision choice: score on validation clips against eager masks, and cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from save_deploy.bundle import model_spec
from save_deploy.calibration.pairs import pair_digest
from save_deploy.calibration.select import is_generated
from save_deploy.calibration.table import CalibrationTable
from save_deploy.data.audio import second
from save_deploy.data.open import open_dataset
from save_deploy.data.transforms import resize_frame, resize_mask
from save_deploy.errors import DataError
from save_deploy.export.fp16 import Fp16Plan
from save_deploy.export.graph import is_large, write_graph
from save_deploy.export.options import ExportOptions
from save_deploy.export.quantize.plan import QuantPlan
from save_deploy.export.quantize.qdq import count_work
from save_deploy.metrics.parity import mask_agreement
from save_deploy.metrics.segmentation import ScoreMeter
from save_deploy.model.save import SaveModel
from save_deploy.runtime.compare.speed import time_interleaved
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import as_batch, open_session
from save_deploy.runtime.session.open import Content, preferred_backend

SPLIT = "val"
SEARCH_ROUNDS = 12


@dataclass(frozen=True)
class Scored:
    """Scores of a choice.

    m_j, m_f: as in save-eval.
    agreement: IoU of all masks with the eager masks, pooled over frames.
    """

    m_j: float
    m_f: float
    agreement: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Validation:
    """Validation clips with N frames in total, one clip after another.

    images: uint8 (N,S,S,3).
    audio_embedding: float32 (N,128).
    truth, eager_masks: bool (N,S,S).
    sizes: number of frames of each clip.
    """

    data: str
    images: NDArray[np.uint8]
    audio_embedding: NDArray[np.float32]
    truth: NDArray[np.bool_]
    eager_masks: NDArray[np.bool_]
    eager: Scored
    sizes: tuple[int, ...]
    sha256: str

    def score(self, pipeline: SavePipeline) -> Scored:
        return _score(
            pipeline.run(self.images, self.audio_embedding),
            self.truth, self.eager_masks, self.sizes,
        )  # fmt: skip


def make_validation(
    eager: SavePipeline, name: str, n_clips: int, table: CalibrationTable, *,
    on_clip: Callable[[], object] = lambda: None,
) -> Validation:  # fmt: skip
    """Run n evenly spaced clips of the val split through the eager model.

    Raises DataError when a pair is among the calibration pairs of the table.
    """
    clips = open_dataset(name, split=SPLIT, n_clips=n_clips if is_generated(name) else None)
    chosen = np.unique(np.linspace(0, len(clips) - 1, min(n_clips, len(clips))).astype(int))
    images, embeddings, truth, sizes, logits = [], [], [], [], []
    res, seen = eager.config.res, set(table.data["pair_sha256"])
    digest = hashlib.sha256()
    for i in chosen:
        clip = clips[int(i)]
        heard = clip.heard()
        for k, frame in enumerate(clip.frames):
            image, sound = resize_frame(frame, res), second(heard, k)
            pair = pair_digest(image, sound)
            if pair in seen:
                raise DataError(
                    "the precision search overlaps the calibration",
                    got=f"frame {k + 1} of {clip.name}",
                    expected=f"none of the {len(seen)} pairs that ranges were measured on",
                    hint="--calib-split train, or another --search-data",
                )
            digest.update(pair.encode())
            images.append(image)
            embeddings.append(eager.embed(sound))
            truth.append(resize_mask(clip.masks[k], res))
            digest.update(truth[-1].tobytes())
        sizes.append(len(clip.frames))
        digest.update(f"/{sizes[-1]}".encode())
        start = len(images) - sizes[-1]
        logits.append(eager.run(np.stack(images[start:]), np.concatenate(embeddings[start:])))
        on_clip()
    stacked = np.concatenate(logits)
    truths = np.stack(truth)
    masks = stacked > 0
    return Validation(
        data=name,
        images=np.stack(images),
        audio_embedding=np.concatenate(embeddings),
        truth=truths,
        eager_masks=masks,
        eager=_score(stacked, truths, masks, tuple(sizes)),
        sizes=tuple(sizes),
        sha256=digest.hexdigest(),
    )


def _score(
    logits: NDArray[np.float32], truth: NDArray[np.bool_], eager: NDArray[np.bool_],
    sizes: tuple[int, ...],
) -> Scored:  # fmt: skip
    meter = ScoreMeter()
    for start, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
        meter.add(logits[start : start + size], truth[start : start + size])
    score = meter.score()
    return Scored(score.m_j, score.m_f, mask_agreement(logits > 0, eager))


class Trial:
    """Scores and times choices of float units in sessions of the preferred backend."""

    def __init__(
        self, model: SaveModel, graph: Path, plan: QuantPlan, fp16: Fp16Plan | None,
        validation: Validation, options: ExportOptions,
    ) -> None:  # fmt: skip
        self.config, self.graph, self.plan, self.validation = model.config, graph, plan, validation
        self.fp16, self.options, self.memo = fp16, options, dict[str, Any]()
        self.audio = eager_pipeline(model).audio  # pipelines need one; it is not run
        self.backend = preferred_backend(str(options.precision))

    def evaluate(self, floats: frozenset[str]) -> Scored:
        with self._open(floats, "choice") as pipeline:
            return self.validation.score(pipeline)

    def costs(self, choices: Mapping[str, frozenset[str]]) -> dict[str, float]:
        """Return the cost of several choices of float units: interleaved p50 in ms, or GMAC."""
        if self.options.search_cost == "work":
            work = count_work(ir.load(self.graph), self.plan.sites)
            gmac = lambda floats: sum(n if u in floats else n / 2 for u, n in work.items()) / 1e9
            return {name: gmac(floats) for name, floats in choices.items()}
        if is_large(self.graph):  # only one fits into memory at a time
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
        spec = model_spec(self.config, self.options.batch)
        plan = replace(self.plan, float_units=tuple(floats))
        written = write_graph(self.graph, path, spec, quant=plan, fp16=self.fp16, memo=self.memo)
        try:
            session = open_session(
                self.backend, path, spec, threads=self.options.threads,
                content=Content(small_weights=plan.weight_bits == 7),
            )  # fmt: skip
        finally:
            for file in written.files:
                file.unlink()
        return SavePipeline(
            config=self.config,
            precision=str(self.options.precision),
            audio=self.audio,
            model=session,
        )
