"""Write a Triton model repository from a bundle.

Each model of the repository is complete: it has its own copy of its files, and save-deploy's Python
models also of the manifest.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from save_deploy.bundle import (
    GRAPHS,
    MANIFEST,
    Arrays,
    GraphSpec,
    Manifest,
    batch_file,
    model_spec,
)
from save_deploy.errors import BundleError
from save_deploy.files import check_folder_target, new_folder
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.session.open import cpu_bytes
from save_deploy.runtime.triton import film, frame, stream, templates
from save_deploy.runtime.triton.batch import batching, without_batch
from save_deploy.runtime.triton.config import ModelConfig, Warmup, ensemble
from save_deploy.runtime.triton.limits import (
    PLAN,
    Share,
    check_bundle,
    notes,
    plan_of,
    share_cores,
)
from save_deploy.runtime.triton.options import TritonOptions

AUDIO, MODEL, WHOLE, BATCH = "save_audio", "save_model", "save", "save_batch"
VERSION = "1"  # of every model
_MARK = "written by save-deploy triton"
_WARMUP = "golden"
_PYTHON_BYTES = 300_000_000  # memory of one Python backend process, and of the server itself


@dataclass(frozen=True)
class Written:
    """Models of a written repository, threads per instance, and notes for the user."""

    models: tuple[str, ...]
    threads: int
    notes: tuple[str, ...]


def write_repository(options: TritonOptions) -> Written:
    """Write the repository atomically.

    Raises BundleError for a bundle that is altered or cannot be served with these options,
    BackendError if masks would differ, OutputError for the target.
    """
    manifest = Manifest.read(options.bundle)
    share = share_cores(options)
    check_bundle(options, manifest)
    check_folder_target(options.out, force=options.force, is_ours=check_own_repository)
    manifest.verify(options.bundle)
    is_ours = check_own_repository if options.force else None
    with new_folder(options.out, what="the repository", is_ours=is_ours) as folder:
        writer = _Writer(options, manifest, share, folder)
        models = tuple(writer.models())
        for name, text in writer.beside().items():
            (folder / name).write_text(text)
    return Written(models, share.threads, tuple(notes(options, manifest)))


def check_own_repository(folder: Path) -> None:
    """Raise BundleError for a folder that `save-deploy triton` did not write."""
    config = folder / WHOLE / "config.pbtxt"
    if not config.is_file() or _MARK not in config.read_text(errors="replace"):
        raise BundleError("the folder is not a model repository of save-deploy")


@dataclass(frozen=True)
class _Writer:
    options: TritonOptions
    manifest: Manifest
    share: Share
    folder: Path

    def models(self) -> Iterator[str]:
        """Write the models one by one and yield their names."""
        audio, model = self.manifest.audio, self.manifest.model
        yield self._graph(AUDIO, GRAPHS[1], audio)
        yield self._graph(MODEL, GRAPHS[0], model)
        for batch in self._batches():
            spec = model_spec(self.manifest.config, batch)
            yield self._graph(f"{MODEL}_x{batch}", batch_file(batch), spec)
        whole = GraphSpec((model.inputs[0], audio.inputs[0]), model.outputs)
        self._config(WHOLE, ensemble(WHOLE, whole, [(AUDIO, audio), (MODEL, model)]))
        place = self.folder / WHOLE / VERSION  # Triton requires a version folder
        place.mkdir()
        (place / "steps").write_text(
            "in ../config.pbtxt\n"
        )  # object stores do not keep empty folders
        yield WHOLE
        n = self.options.instances
        if batches := self._batches():
            config = ModelConfig(
                BATCH, without_batch(model), "python", n, most_frames=max(batches),
                more=batching(batches),
            )  # fmt: skip
            yield self._python(config, "BatchModel")
        yield self._python(ModelConfig("save_frame", frame.SPEC, "python", n), "FrameModel")
        stream_config = ModelConfig("save_stream", stream.SPEC, "python", n, more=stream.BATCHING)
        yield self._python(stream_config, "StreamModel")
        film_config = ModelConfig(
            "save_video", film.SPEC, "python", n, optional=(film.FPS.name,), more=film.DECOUPLED
        )
        yield self._python(film_config, "FilmModel")

    def beside(self) -> dict[str, str]:
        options, n = self.options, self.options.instances
        graphs, pythons = 1 + len(self._batches()), 4 if self._batches() else 3
        needs = n * graphs * cpu_bytes(options.bundle / GRAPHS[0])
        needs += _PYTHON_BYTES * (1 + pythons * n)
        return templates.beside(
            cores=self.share.threads * n, memory_gib=needs // 2**30 + 1, n_gpus=len(self._gpus())
        )

    def _batches(self) -> tuple[int, ...]:
        """Return the further batches that are served: none with plans, which are of one batch."""
        return () if self.options.engine == "tensorrt" else self.manifest.batches

    def _config(self, name: str, text: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "config.pbtxt").write_text(f"# {name}: {_MARK}\n{text}")

    def _graph(self, name: str, graph: str, spec: GraphSpec) -> str:
        """Write save_audio, save_model ... The audio graph always runs on the CPU."""
        options, threads = self.options, self.share.threads
        is_audio = name == AUDIO
        engine = "onnxruntime" if is_audio and options.engine == "tensorrt" else options.engine
        place = self.folder / name / VERSION
        place.mkdir(parents=True)
        files = [graph, *weight_files(options.bundle / graph, self.manifest.files)]
        target = "model.onnx"
        if engine == "tensorrt":
            files, target = [plan_of(self.manifest)["file"]], PLAN
        for file in files:  # weights keep the name that is stored in the graph
            copy = place / (target if file == files[0] else file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(options.bundle / file, copy)
        config = ModelConfig(
            name,
            spec,
            backend=engine,
            file=target,
            instances=1 if is_audio else options.instances,
            gpus=() if is_audio else self._gpus(),
            warmups=(self._warmup(name, spec),),
            more=("response_cache { enable: true }",) if is_audio else (),
        )
        if engine == "python":
            self._python(
                replace(config, file="", parameters={"threads": str(threads)}), "GraphModel"
            )
        else:
            self._config(name, replace(config, parameters=self._parameters(engine, config)).text())
        return name

    def _gpus(self) -> tuple[int, ...]:
        return self.options.gpus or ((0,) if self.options.engine == "tensorrt" else ())

    def _parameters(self, engine: str, config: ModelConfig) -> dict[str, str]:
        threads = self.share.threads
        if engine == "onnxruntime":
            return {"intra_op_thread_count": str(threads), "inter_op_thread_count": "1"}
        if engine == "openvino":  # one compiled graph for all instances
            n = config.instances
            return {"NUM_STREAMS": str(n), "INFERENCE_NUM_THREADS": str(n * threads)}
        return {}

    def _python(self, config: ModelConfig, kind: str) -> str:
        """Write a model that runs save-deploy, with a copy of the manifest."""
        place = self.folder / config.name / VERSION
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.options.bundle / MANIFEST, place / MANIFEST)
        (place / "model.py").write_text(templates.model_py(config.name, kind))
        self._config(config.name, config.text())
        return config.name

    def _warmup(self, name: str, spec: GraphSpec) -> Warmup:
        """Write the first golden sample as raw files, once for every frame of a call."""
        golden = read_golden(self.options.bundle, self.manifest)
        arrays: Arrays = {
            "image": golden.image[:1],
            "waveform": golden.answers.waveform[:1],
            "audio_embedding": golden.answers.audio_embedding[:1],
        }
        place = self.folder / name / "warmup"
        place.mkdir()
        for tensor in spec.inputs:
            sample = np.repeat(arrays[tensor.name], tensor.shape[0], axis=0)
            np.ascontiguousarray(sample, tensor.dtype).tofile(place / tensor.name)
        return Warmup(_WARMUP, {tensor.name: tensor.name for tensor in spec.inputs})
