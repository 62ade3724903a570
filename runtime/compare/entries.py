"""Models to compare, as values that are passed between processes: bundle, graph file, eager."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from save_deploy.bundle import Manifest, audio_spec, model_spec
from save_deploy.config import SaveConfig
from save_deploy.runtime.eager_mode import EagerMode, device_text
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.session import GPU_BACKENDS, Session, open_session
from save_deploy.runtime.session.open import ENGINE_BACKENDS, Content, cpu_bytes
from save_deploy.runtime.session.ort_cuda import CudaOptions

REFERENCE = "eager"
_SHARE = 0.6  # of free memory that all pipelines of a comparison may take together
_MB = 1e6


@dataclass(frozen=True)
class EagerSource:
    """Source of an eager reference: checkpoint, input shape, weight size in float32, and mode."""

    checkpoint: Path
    sam: Path | None
    res: int
    batch: int
    n_bytes: int
    mode: EagerMode = EagerMode()


@dataclass(frozen=True)
class GraphFile:
    """An ONNX file of the model graph outside of a bundle.

    audio: the audio graph, None when only the model graph is run.
    low_memory: see open_session.
    small_weights: as in Content.
    """

    path: Path
    config: SaveConfig
    batch: int
    audio: Path | None = None
    low_memory: bool | None = None
    small_weights: bool = False

    def open(self, backend: str, threads: int | None, cuda: CudaOptions) -> Session:
        spec = model_spec(self.config, self.batch)
        return open_session(
            backend,
            self.path,
            spec,
            threads=threads,
            low_memory=self.low_memory,
            cuda=cuda,
            content=Content(small_weights=self.small_weights),
        )


@dataclass(frozen=True)
class Entry:
    """One model of a comparison: a bundle's folder and backend, a graph file, or an eager model.

    name: unique in a run.
    bundle, form: name of the bundle or of the graph form (eager, compile, naive, merged, ...), as
        the user gave it.
    cuda: options of backend onnxruntime-cuda.
    trust: run an engine that was not built on this machine.
    """

    name: str
    backend: str
    precision: str
    size_mb: float
    bundle: str = ""
    folder: Path | None = None
    eager: EagerSource | None = None
    threads: int | None = None
    graph: GraphFile | None = None
    form: str = ""
    cuda: CudaOptions = CudaOptions()
    trust: bool = False

    @property
    def device(self) -> str:
        """Device for tables. Engines are built without TF32."""
        if self.eager is not None:
            return self.eager.mode.device_text
        tf32 = self.backend == "onnxruntime-cuda" and self.cuda.tf32
        return device_text("cuda" if self.backend in GPU_BACKENDS else "cpu", tf32=tf32)

    def open_model(self) -> Session:
        """Open a session of the model graph only."""
        if self.graph is not None:
            return self.graph.open(self.backend, self.threads, self.cuda)
        return self.open().model

    def open(self) -> SavePipeline:
        """Open the pipeline without hashing files and running golden samples.

        Both were done when the entry was created.
        """
        if self.eager is not None:
            from save_deploy.runtime.eager import open_eager

            of = self.eager
            return open_eager(
                of.checkpoint, of.sam, res=of.res, batch=of.batch, mode=of.mode,
                threads=self.threads,
            )  # fmt: skip
        if self.graph is not None:
            assert self.graph.audio is not None
            return SavePipeline(
                config=self.graph.config,
                precision=self.precision,
                audio=open_session(
                    self.backend, self.graph.audio, audio_spec(), threads=self.threads
                ),
                model=self.open_model(),
            )
        assert self.folder is not None
        return load(
            self.folder,
            backend=self.backend,
            threads=self.threads,
            verify=False,
            self_test=False,
            trust=self.trust,
            cuda=self.cuda,
        )

    def peak_bytes(self, config: SaveConfig) -> int:
        """Estimate the host memory: weights, and scores of a global block."""
        scores = 4 * config.num_heads * config.grid**4
        if self.eager is not None:
            return self.eager.n_bytes + 2 * scores
        path = self.graph.path if self.graph is not None else None
        if self.folder is not None:
            path = self.folder / "model.onnx"
        if path is None or self.backend in GPU_BACKENDS:
            return 0
        return cpu_bytes(path) + scores


class Pool:
    """Open pipelines by name.

    resident: keep them open. Otherwise each is open only during its use, so that one model at a
        time is in memory.
    """

    def __init__(
        self, *, resident: bool = True, opened: Mapping[str, SavePipeline] | None = None
    ) -> None:
        """Create a pool. opened: pipelines of the caller, which close() leaves open."""
        self.resident = resident
        self._theirs, self._ours = dict(opened or {}), dict[str, SavePipeline]()

    @contextmanager
    def use(self, entry: Entry) -> Iterator[SavePipeline]:
        known = self._theirs.get(entry.name) or self._ours.get(entry.name)
        if known is None:
            known = entry.open()
            if self.resident:
                self._ours[entry.name] = known
        try:
            yield known
        finally:
            if not self.resident and entry.name not in self._theirs:
                known.close()
                del known
                gc.collect()  # the weights of an eager model go with their last reference

    def close(self) -> None:
        for pipeline in self._ours.values():
            pipeline.close()
        self._ours.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fit_together(entries: Sequence[Entry], config: SaveConfig) -> bool:
    """Return True when all entries fit into memory at once."""
    needed = sum(entry.peak_bytes(config) for entry in entries)
    return needed < _SHARE * psutil.virtual_memory().available


def bundle_mb(manifest: Manifest, backend: str) -> float:
    """Return the size in MB of the files that a backend reads: model or engine, and audio graph."""
    names = ("model.onnx", "audio.onnx")
    if backend in ENGINE_BACKENDS:
        engine = next(e["file"] for e in manifest.engines if e.get("library") == backend)
        names = (engine, "audio.onnx")
    return sum(r.size for name, r in manifest.files.items() if name.startswith(names)) / _MB
