"""Masks from frames and sound.

load("bundle/")(frame, sound) -> mask                  # arrays, Pillow images, or paths
Listener(pipeline, sound)(frame, time_s) -> mask       # frames in order of time
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import GRAPHS, WINDOW_SAMPLES, Arrays, GraphSpec, Manifest, batch_file
from save_deploy.bundle_files import checked, require_unchanged, stamps_of
from save_deploy.config import SaveConfig
from save_deploy.data.audio import Waveform, second
from save_deploy.data.transforms import Frame, resize_frame
from save_deploy.errors import DataError
from save_deploy.extras import named_extras
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.batches import batch_plan, opened_later
from save_deploy.runtime.engine_check import GRAPH
from save_deploy.runtime.enlarge import mask_at
from save_deploy.runtime.inputs import (
    as_embeddings,
    as_folder,
    as_frame,
    as_images,
    as_sound,
    as_threshold,
    as_time,
    check_second,
    check_threads,
    check_window,
    require_finite,
)
from save_deploy.runtime.result import Result, logit_of
from save_deploy.runtime.seconds import SILENCE, SoundSource, seconds_of
from save_deploy.runtime.session import GPU_BACKENDS, Session, as_batch, open_session, twin_of
from save_deploy.runtime.session.choose import choose, require_machine, runs_on_cpu
from save_deploy.runtime.session.measured import measured_choice
from save_deploy.runtime.session.open import Content, EngineOptions, fits, known_backend, open_both
from save_deploy.runtime.session.ort_cuda import CudaOptions

ROUNDING_S = 1e-6  # times are floats: 2.9999999 counts as 3


class SavePipeline:
    """A bundle's sessions: `audio` runs once per second of sound, `model` once per frame.

    further: sessions of other graphs by frames per call, for several frames at once.
    """

    def __init__(
        self,
        *,
        config: SaveConfig,
        precision: str,
        audio: Session,
        model: Session,
        further: Mapping[int, Session] = MappingProxyType({}),
        threshold: float = 0.5,
        chosen: str = "",
    ) -> None:
        """threshold: probability in (0,1) above which a pixel sounds. Raises DataError.
        chosen: why this backend."""
        self.config, self.precision, self.audio, self.model = config, precision, audio, model
        self.further = further
        self.threshold, self.chosen = as_threshold(threshold), chosen

    def __repr__(self) -> str:
        return (
            f"<SAVE {self.config.name} at {self.config.res} px, {self.precision} on {self.backend}, "
            f"threshold {self.threshold:g}>"
        )

    @property
    def backend(self) -> str:
        return self.model.backend

    @property
    def backend_text(self) -> str:
        """The backend, with why it was chosen."""
        return f"{self.backend} ({self.chosen})" if self.chosen else self.backend

    @property
    def batch(self) -> int:
        """Frames per call of the model graph; above 1 for clips."""
        return self.model.spec.inputs[0].shape[0]

    @property
    def batches(self) -> tuple[int, ...]:
        """Frames per call of every graph, the model graph first."""
        return (self.batch, *self.further)

    def embed(self, waveform: Any, rate: int | None = None) -> NDArray[np.float32]:
        """Return the audio_embedding float32 (1,128) of one second of sound.

        waveform: float (n,) 16 kHz mono in [-1,1]. Shorter sounds are padded with silence, longer
        ones are cut to the first second.
        rate: sample rate in Hz; sounds (n,) or (n,channels) are then resampled and mixed.
        Raises DataError for an empty sound, integers, non-finite samples and samples above MAX_PEAK;
        without a rate also for several channels and for one second at another rate.
        """
        sound = as_sound(waveform, rate)
        if rate is None:
            check_second(sound)
        window = sound[:WINDOW_SAMPLES]
        check_window(window)
        return self.audio.infer({"waveform": as_batch(second(window))})["audio_embedding"]

    def logits(self, frame: Any, audio_embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return mask_logits float32 (S,S) at network size, for a frame uint8 (H,W,3) RGB."""
        return self.run(as_batch(resize_frame(as_frame(frame), self.config.res)), audio_embedding)[
            0
        ]

    def run(
        self, images: NDArray[np.uint8], audio_embedding: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return mask_logits float32 (F,S,S) for images at network size.

        images: uint8 (F,S,S,3); audio_embedding: float32 (F,128).
        F may be any number: the largest graphs are filled first, and the last call of the smallest
        one is padded with the last frame.
        """
        images = as_images(images, self.config.res)
        embeddings = as_embeddings(audio_embedding, len(images))
        sessions, found, start = {self.batch: self.model, **self.further}, [], 0
        for batch in batch_plan(len(images), sessions):
            chosen = np.minimum(np.arange(start, start + batch), len(images) - 1)
            inputs: Arrays = {"image": images[chosen], "audio_embedding": embeddings[chosen]}
            found.append(sessions[batch].infer(inputs)["mask_logits"][:, 0])  # (batch,S,S)
            start += batch
        return np.concatenate(found)[: len(images)]

    def clip_logits(self, frames: Sequence[Frame], waveform: Waveform) -> NDArray[np.float32]:
        """Return mask_logits float32 (F,S,S) for frames one second apart, as in AVSBench.

        frames: F x uint8 (H,W,3); waveform: float (n,), whose second k belongs to frame k.
        """
        sound = as_sound(waveform)
        check_window(sound[:WINDOW_SAMPLES])
        listed = frames if isinstance(frames, Iterable) else ()
        images = [resize_frame(as_frame(frame), self.config.res) for frame in listed]
        if not images:
            raise DataError("no frames", got=type(frames).__name__, expected="one frame or more")
        embeddings = [self.embed(second(sound, k)) for k in range(len(images))]
        return self.run(np.stack(images), np.concatenate(embeddings))

    def __call__(self, frame: Any, sound: Any, *, rate: int | None = None) -> Result:
        """Return the mask bool (H,W) of a frame and its second of sound; True = sounding.

        frame: uint8 (H,W,3) RGB as array, list, tensor or Pillow image, or the path of a PNG or JPEG.
        sound: as in embed(), or the path of a sound or video file.
        rate: sample rate in Hz, as in embed().

        >>> mask = segment(frame, sound)
        >>> mask.shape == frame.shape[:2], mask.dtype.name
        (True, 'bool')
        >>> segment(frame, np.zeros((44100, 2)), rate=44100).shape == mask.shape
        True
        """
        return self.mask(frame, self.embed(sound, rate))

    def mask(self, frame: Any, audio_embedding: NDArray[np.float32]) -> Result:
        """Return the mask bool (H,W) of a frame uint8 (H,W,3) RGB and an embedding from embed().

        Raises ParityError if the backend returns NaN or infinite logits.
        """
        frame = as_frame(frame)
        logits = self.logits(frame, audio_embedding)
        require_finite(logits)
        found = mask_at(logits, frame.shape[:2], logit_of(self.threshold))
        return Result(found, logits, self.threshold)

    def twin(self) -> Self:
        """Return a pipeline on the same weights, for another thread: see load(streams=). It is closed
        for itself. CPU backends only."""
        other = copy.copy(self)
        other.audio, other.model = (twin_of(s) for s in (self.audio, self.model))
        other.further = {batch: twin_of(session) for batch, session in self.further.items()}
        return other

    def close(self) -> None:
        for session in (self.audio, self.model, *self.further.values()):
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Listener:
    """Masks frames in order of time and computes one audio embedding per second.

    sound: the whole waveform float (n,) 16 kHz mono, or the path of its file; an iterable of
    one-second waveforms (n,), each read when its second begins; or, for live sound, a function
    second -> waveform (n,), called once in each second that has a frame.
    rate: sample rate in Hz. With it sounds may be (n,channels); seconds are resampled one by one.
    Missing sound is silence. Invalid sound raises the errors of embed() when its second begins. Use
    one listener per thread; listeners may share a pipeline.
    """

    def __init__(
        self, pipeline: SavePipeline, sound: SoundSource, *, rate: int | None = None
    ) -> None:
        self.pipeline = pipeline
        self.rate = rate
        self.second = -1  # the current second
        self.waveform: Waveform = SILENCE  # sound of the current second, (n,)
        self._at = seconds_of(sound, rate)
        self._embedding: NDArray[np.float32] | None = None

    def __call__(self, frame: Any, time_s: float) -> Result:
        """Return the mask bool (H,W) of a frame uint8 (H,W,3) RGB.

        time_s: time of the frame on the sound's clock, >= 0.
        Raises the errors of hear().
        """
        return self.pipeline.mask(frame, self.hear(time_s))

    def hear(self, time_s: float) -> NDArray[np.float32]:
        """Return the embedding float32 (1,128) of the second that contains time_s.

        Raises DataError if time_s is not a number or lies in an earlier second than the last call.
        """
        at_s = as_time(time_s)
        if not math.isfinite(at_s) or int(at_s + ROUNDING_S) < self.second or at_s < 0:
            raise DataError(
                "wrong time of a frame",
                got=f"{time_s} s"[:80],
                expected=f"{max(self.second, 0)} s or later: seconds must be in order",
            )
        wanted = int(at_s + ROUNDING_S)
        if wanted > self.second:
            self.waveform, self.second = self._at(wanted), wanted
            self._embedding = None  # every frame of a second with invalid sound raises
        if self._embedding is None:
            sound = as_sound(self.waveform)
            window = sound if sound.size else np.zeros(WINDOW_SAMPLES, np.float32)
            self._embedding = self.pipeline.embed(window)
        return self._embedding


def stream(
    pipeline: SavePipeline,
    frames: Iterable[Any],
    sound: SoundSource,
    *,
    frames_per_s: float | None = None,
    rate: int | None = None,
) -> Iterator[Result]:
    """Yield a mask bool (H,W) for every frame.

    frames: uint8 (H,W,3) at frames_per_s, or without it pairs (frame, time in s), as from a camera.
    sound, rate: as in Listener. Frame i uses second floor(i / frames_per_s) of the sound, a pair the
    second that contains its time.
    Memory does not grow with the length of the video.

    >>> masks = list(stream(segment, [frame, frame], sound, frames_per_s=25))
    >>> len(masks), masks[0].shape == frame.shape[:2]
    (2, True)
    """
    if frames_per_s is not None and not 0 < as_time(frames_per_s) < math.inf:
        raise DataError("wrong frame rate", got=str(frames_per_s), expected="frames per second > 0")
    listener = Listener(pipeline, sound, rate=rate)
    for i, item in enumerate(frames):
        if frames_per_s is None and not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise DataError(
                "frame without a time",
                got=type(item).__name__,
                expected="pairs (frame, time in s)",
                hint="frames_per_s= takes bare frames at a fixed rate",
            )
        frame, time_s = item if frames_per_s is None else (item, i / frames_per_s)
        yield listener(frame, time_s)


@named_extras()
def load(
    bundle: str | Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    streams: int = 1,
    verify: bool = True,
    self_test: bool | None = None,
    trust: bool = False,
    cuda: CudaOptions = CudaOptions(),
    threshold: float = 0.5,
    measured: bool = True,
) -> SavePipeline:
    """Open a bundle.

    backend: onnxruntime, openvino, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt or tensorrt-rtx
    (the last two run the bundle's engines), or auto: an engine that can run here, else a GPU, else
    the CPU with the backend that save-compare measured to be faster, or else by a rule: OpenVINO if
    installed, ONNX Runtime for INT8 on CPUs without an INT8 dot product. The audio graph always runs
    on the CPU.
    threads: CPU threads; None for all cores.
    streams: frames masked at the same time on a CPU, by the pipeline and its twins, which share the
    threads. More than one gives more frames per second, each of them later.
    verify: compare every file with its sha256, and refuse files that change before they are opened.
    self_test: run the golden samples first. None: GPU backends run them once per GPU, driver,
    library and file.
    trust: also run engines that were not built on this machine; engines are code (docs/security.md).
    cuda: settings of backend onnxruntime-cuda (docs/gpu.md).
    threshold: probability in (0,1) above which a pixel sounds.
    measured: False: auto chooses by the rule alone, as when nothing was measured or without verify.

    >>> segment = load(bundle)
    >>> segment
    <SAVE vit_t at 224 px, fp32 on ..., threshold 0.5>

    Raises BundleError (incomplete or altered bundle, or a graph that differs from the manifest),
    BackendError (cannot run here), ParityError (self-test).
    """
    folder, backend = as_folder(bundle), known_backend(backend)
    check_threads(threads, streams)
    as_threshold(threshold)
    manifest = Manifest.read(folder)
    stamps = stamps_of(folder, manifest.files)
    on_cpu = runs_on_cpu(backend)
    graphs = (*GRAPHS, *map(batch_file, manifest.batches))
    checks: AbstractContextManager[Callable[[], object] | None] = nullcontext()
    if verify:
        # before hashing, which takes seconds for gigabytes
        require_machine(backend, manifest, trust=trust)
        checks = checked(folder, manifest.files, meanwhile=on_cpu, parsed=graphs)
    with ExitStack() as stack, checks as confirm:  # closes the sessions after an error
        weights = {name: weight_files(folder / name, manifest.files) for name in graphs}
        choice = choose(backend, folder, manifest, hashed=verify, trust=trust).with_settings(cuda)
        if verify and measured and fits(folder / GRAPH):
            choice = measured_choice(choice, manifest.content_of(GRAPH, weights[GRAPH]), threads)
        precision, entry = manifest.precision["precision"], choice.engine or {}
        engine = EngineOptions(
            # choose() returns only trusted engines
            host_code=bool(entry.get("version_compatible")),
            refit_from=folder / GRAPH if entry.get("options", {}).get("strip_weights") else None,
        )

        def opened(backend: str, name: str, spec: GraphSpec) -> Session:
            beside = weights.get(name, ())
            return open_session(
                backend,
                folder / name,
                spec,
                threads=threads,
                streams=streams,
                content=Content(
                    manifest.content_of(name, beside), beside, manifest.small_weights, confirm
                ),
                precision=precision,
                engine=engine,
                cuda=cuda,
            )

        def check(name: str) -> None:  # at its first use: it was hashed when the bundle was opened
            files = (name, *weights[name])
            require_unchanged(folder, {file: stamps[file] for file in files if file in stamps})

        further = {}
        if choice.engine is None:  # an engine has one batch
            further = opened_later(manifest, choice.backend, partial(opened, choice.backend), check)
        audio_backend = "auto" if choice.backend in GPU_BACKENDS else choice.backend
        model, audio = open_both(
            partial(opened, choice.backend, choice.file, manifest.model),
            partial(opened, audio_backend, GRAPHS[1], manifest.audio),
            stack,
            at_once=on_cpu,
        )
        if confirm is not None:
            confirm()
            require_unchanged(folder, stamps)
        pipeline = SavePipeline(
            config=manifest.config,
            precision=precision,
            audio=audio,
            model=model,
            further=further,
            threshold=threshold,
            chosen=choice.why,
        )
        if self_test or (self_test is None and choice.machine is not None):
            from save_deploy.runtime.self_test import run_self_test  # a start needs few modules

            run_self_test(pipeline, folder, manifest, choice, again=bool(self_test))
        stack.pop_all()
    return pipeline
