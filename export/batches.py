"""Graphs with further fixed batches: written with the weights of the first graph, and proven.

All of them read one file of external data, so that a bundle grows by the graphs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from save_deploy.bundle import GRAPHS, batch_file, model_spec
from save_deploy.config import SaveConfig
from save_deploy.export.fp16 import Fp16Plan
from save_deploy.export.golden import Golden
from save_deploy.export.graph import WrittenGraph, write_graph
from save_deploy.export.options import ExportOptions
from save_deploy.export.quantize.plan import QuantPlan
from save_deploy.metrics.parity import ParityResult, parity
from save_deploy.runtime.batches import every_slot
from save_deploy.runtime.compare.entries import Entry


@dataclass(frozen=True)
class BatchProof:
    """Parity of one further graph on one backend, over golden samples in every place of a call."""

    batch: int
    backend: str
    parity: ParityResult

    def __str__(self) -> str:
        found = self.parity
        return (
            f"{batch_file(self.batch)} on {self.backend}: {self.batch} frames a call, mask agreement "
            f"{found.mask_agreement:.5f} with eager, logits within {found.max_abs_err:.1e}"
        )


def write_batches(
    sources: Mapping[int, ir.Model | Path], folder: Path, stem: str, config: SaveConfig, *,
    quant: QuantPlan | None = None, fp16: Fp16Plan | None = None,
    about: Mapping[str, str] | None = None,
) -> dict[int, WrittenGraph]:  # fmt: skip
    """Write STEM.onnx with the first batch, and a graph with every further one -> them by batch.

    sources: by batch, as in write_graph. With several, the weights are in STEM.onnx.data.
    """
    first = folder / f"{stem}.onnx"
    shared = first if len(sources) > 1 else None
    written: dict[int, WrittenGraph] = {}
    for batch, source in sources.items():
        path = folder / batch_file(batch, stem) if written else first
        written[batch] = write_graph(
            source, path, model_spec(config, batch), quant=quant, fp16=fp16, about=about,
            shared=shared,
        )  # fmt: skip
    return written


def prove_batches(
    golden: Golden, entries: Sequence[Entry], folder: Path, options: ExportOptions
) -> tuple[BatchProof, ...]:
    """Run every further graph on the backends of the bundle's own graph, one after the other.

    entries: of the comparison; those of model.onnx say how a graph is opened.
    """
    found = []
    for batch in options.more_batches:
        slots = every_slot(len(golden.pairs), batch)
        for entry in entries:
            if entry.graph is None or entry.graph.path != folder / GRAPHS[0]:
                continue
            graph = replace(entry.graph, path=folder / batch_file(batch), batch=batch)
            with replace(entry, graph=graph).open() as pipeline:
                logits = pipeline.run(golden.pairs.image[slots], golden.audio_embedding[slots])
            result = parity(golden.mask_logits[slots], logits)
            found.append(BatchProof(batch, entry.backend, result))
    return tuple(found)


def batch_section(proofs: Sequence[BatchProof]) -> list[str]:
    """Return the section of report.md, if there is something in it."""
    lines = "\n".join(f"- {proof}" for proof in proofs)
    return [f"## Further batches\n\n{lines}"] if proofs else []
