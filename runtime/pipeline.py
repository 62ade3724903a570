"""Frames and sound in, masks out.

load("bundle/")(frame, sound) -> mask                  # arrays, pictures of Pillow, or paths
Listener(pipeline, sound)(frame, time_s) -> mask       # frames in order, as they come
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from save_deploy.bundle import GRAPHS, WINDOW_SAMPLES, Arrays, GraphSpec, Manifest
from save_deploy.bundle_files import require_unchanged, stamps_of
from save_deploy.config import SaveConfig
from save_deploy.data.audio import Waveform, second
from save_deploy.data.transforms import Frame, resize_frame
from save_deploy.errors import DataError
from save_deploy.extras import named_extras
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.engine_check import GRAPH
from save_deploy.runtime.inputs import (
    as_embeddings,
    as_folder,
    as_frame,
    as_images,
    as_sound,
    as_threshold,
    as_time,
    check_heard,
    check_second,
    check_threads,
    require_finite,
)
from save_deploy.runtime.result import Result, logit_of
from save_deploy.runtime.self_test import run_self_test
from save_deploy.runtime.session import GPU_BACKENDS, Session, as_batch, open_session
from save_deploy.runtime.session.choose import choose, require_machine
from save_deploy.runtime.session.open import Content, EngineOptions, known_backend
from save_deploy.runtime.session.ort_cuda import CudaOptions

# A whole waveform (n,), its seconds in order, or second -> what is heard in it: 16 kHz mono, [-1,1], or
# of a rate that is told; or the path of a file.
SoundSource = Waveform | Iterable[Waveform] | Callable[[int], Waveform] | str | PathLike[str]
ROUNDING_S = 1e-6  # times are floats: 2.9999999 is the third second
_SILENCE: Waveform = np.zeros(0, np.float32)


class SavePipeline:
    """The two sessions of a model: the audio side runs once per second, the model once per frame."""

    def __init__(
        self,
        *,
        config: SaveConfig,
        precision: str,
        audio: Session,
        model: Session,
        threshold: float = 0.5,
    ) -> None:
        """threshold: probability in (0,1) above which a pixel sounds. Raises DataError for another."""
        self.config, self.precision, self.audio, self.model = config, precision, audio, model
        self.threshold = as_threshold(threshold)

    def __repr__(self) -> str:
        return (
            f"<SAVE {self.config.name} at {self.config.res} px, {self.precision} on {self.backend}, "
            f"threshold {self.threshold:g}>"
        )

    @property
    def backend(self) -> str:
        return self.model.backend

    @property
    def batch(self) -> int:
        """Frames per call of the model graph: 1, or those of a clip."""
        return self.model.spec.inputs[0].shape[0]

    def embed(self, waveform: Any, rate: int | None = None) -> NDArray[np.float32]:
        """One second of sound: float (n,) 16 kHz mono in [-1,1] -> audio_embedding (1,128).

        With its rate in Hz a sound of another rate, (n,) or (n,channels), is resampled and mixed. A
        shorter sound is completed with silence, a longer one is cut to its first second.
        Raises DataError for one that is empty, of several channels or of one second at another rate
        (without a rate), of integers, not finite, or with samples beyond MAX_PEAK.
        """
        sound = as_sound(waveform, rate)
        if rate is None:
            check_second(sound)
        window = sound[:WINDOW_SAMPLES]
        check_heard(window)
        return self.audio.infer({"waveform": as_batch(second(window))})["audio_embedding"]

    def logits(self, frame: Any, audio_embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """frame uint8 (H,W,3) RGB -> mask_logits float32 (S,S) at network size."""
        return self.run(as_batch(resize_frame(as_frame(frame), self.config.res)), audio_embedding)[
            0
        ]

    def run(
        self, images: NDArray[np.uint8], audio_embedding: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """images uint8 (F,S,S,3) at network size, embeddings (F,128) -> mask_logits (F,S,S).

        Any F: frames go through in batches of the graph, the last one completed with its last frame.
        """
        images = as_images(images, self.config.res)
        heard = as_embeddings(audio_embedding, len(images))
        found, batch = [], self.batch
        for start in range(0, len(images), batch):
            chosen = np.minimum(np.arange(start, start + batch), len(images) - 1)
            inputs: Arrays = {"image": images[chosen], "audio_embedding": heard[chosen]}
            found.append(self.model.infer(inputs)["mask_logits"][:, 0])  # (batch,S,S)
        return np.concatenate(found)[: len(images)]

    def clip_logits(self, frames: Sequence[Frame], waveform: Waveform) -> NDArray[np.float32]:
        """Frames one second apart and the sound under them (second k belongs to frame k), as in
        AVSBench: F x uint8 (H,W,3), float (n,) -> mask_logits (F,S,S)."""
        sound = as_sound(waveform)
        check_heard(sound[:WINDOW_SAMPLES])
        listed = frames if isinstance(frames, Iterable) else ()
        images = [resize_frame(as_frame(frame), self.config.res) for frame in listed]
        if not images:
            raise DataError("no frames", got=type(frames).__name__, expected="one frame or more")
        heard = [self.embed(second(sound, k)) for k in range(len(images))]
        return self.run(np.stack(images), np.concatenate(heard))

    def __call__(self, frame: Any, sound: Any, *, rate: int | None = None) -> Result:
        """frame uint8 (H,W,3) RGB and its second of sound -> mask bool (H,W), True = sounding.

        Lists, tensors and pictures of Pillow are taken for the arrays they are, a path for the PNG or
        JPEG and for the sound file or film it names. rate: of the sound in Hz, see embed.

        >>> mask = segment(frame, sound)
        >>> mask.shape == frame.shape[:2], mask.dtype.name
        (True, 'bool')
        >>> segment(frame, np.zeros((44100, 2)), rate=44100).shape == mask.shape
        True
        """
        return self.mask(frame, self.embed(sound, rate))

    def mask(self, frame: Any, audio_embedding: NDArray[np.float32]) -> Result:
        """frame uint8 (H,W,3) RGB and an embedding from embed() -> mask bool (H,W).

        Raises ParityError where the backend gives NaN or infinite logits: no mask can be made of them.
        """
        frame = as_frame(frame)
        logits = self.logits(frame, audio_embedding)
        require_finite(logits)
        found = at_frame_size(logits, frame.shape[:2]) > logit_of(self.threshold)
        return Result(found, logits, self.threshold)

    def close(self) -> None:
        self.audio.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def at_frame_size(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """mask_logits (S,S) -> those of a frame of size (H,W): bilinear, smoothed where it shrinks."""
    height, width = size
    resized = Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


class Listener:
    """Masks frames as they come; listens anew whenever a second begins.

    sound: the whole waveform float (n,) 16 kHz mono, or the path of its file; an iterable of
    one-second waveforms (n,), read as its second begins; or a function second -> waveform (n,), called
    once in each second that has a frame, for live sound. rate: of all of them in Hz, then also
    (n,channels); seconds are resampled one by one. After the end of the sound, and where it gives no
    sample, silence. Sounds are refused as by embed(), when they are heard. One listener serves one
    thread; listeners in several threads may share a pipeline.
    """

    def __init__(
        self, pipeline: SavePipeline, sound: SoundSource, *, rate: int | None = None
    ) -> None:
        self.pipeline = pipeline
        self.rate = rate
        self.second = -1  # the one heard now
        self.waveform: Waveform = _SILENCE  # its sound, (n,)
        self._at = _source(sound, rate)
        self._embedding: NDArray[np.float32] | None = None

    def __call__(self, frame: Any, time_s: float) -> Result:
        """frame uint8 (H,W,3) RGB, shown at time_s >= 0 on the clock of the sound -> bool (H,W).

        Raises DataError as hear() does.
        """
        return self.pipeline.mask(frame, self.hear(time_s))

    def hear(self, time_s: float) -> NDArray[np.float32]:
        """The embedding (1,128) of the second that a frame at time_s hears.

        Raises DataError for a time that is no number or in an earlier second than the last one's.
        """
        at_s = as_time(time_s)
        if not math.isfinite(at_s) or int(at_s + ROUNDING_S) < self.second or at_s < 0:
            raise DataError(
                "wrong time of a frame",
                got=f"{time_s} s"[:80],
                expected=f"{max(self.second, 0)} s or later: seconds are heard in order",
            )
        wanted = int(at_s + ROUNDING_S)
        if wanted > self.second:
            self.waveform, self.second = self._at(wanted), wanted
            self._embedding = None  # an error in this second stays one until it is over
        if self._embedding is None:
            sound = as_sound(self.waveform)
            heard = sound if sound.size else np.zeros(WINDOW_SAMPLES, np.float32)
            self._embedding = self.pipeline.embed(heard)
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

    frames: uint8 (H,W,3) at frames_per_s, or without a rate pairs (frame, time in s), as a camera
    gives them. sound as in Listener: frame i hears second floor(i / frames_per_s), a pair the second
    of its time. rate: of the sound in Hz, as in Listener. Memory does not grow with the length of the
    video.

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
    verify: bool = True,
    self_test: bool | None = None,
    trust: bool = False,
    cuda: CudaOptions = CudaOptions(),
    threshold: float = 0.5,
) -> SavePipeline:
    """Open a bundle. backend: onnxruntime, openvino, tensorrt, tensorrt-rtx (engines of the bundle),
    onnxruntime-cuda, onnxruntime-tensorrt, or auto: an engine that may run here, else a GPU, else the
    CPU with OpenVINO where it is installed. The audio side, once a second, is always on the CPU.

    verify compares every file with its sha256 first, and refuses one that changes before it is opened.
    self_test: run the golden samples before anything else; by default GPU backends do, once per GPU,
    driver, library and file. trust: an engine is code, so only those built on this machine run; True
    runs others as well (docs/security.md). cuda: of backend onnxruntime-cuda (docs/gpu.md). threshold:
    probability in (0,1) above which a pixel sounds.

    >>> segment = load(bundle)
    >>> segment
    <SAVE vit_t at 224 px, fp32 on ..., threshold 0.5>

    Raises BundleError (incomplete, altered, a graph that is not the manifest's), BackendError (cannot
    run here), ParityError (self-test).
    """
    folder, backend = as_folder(bundle), known_backend(backend)
    check_threads(threads)
    as_threshold(threshold)
    manifest = Manifest.read(folder)
    stamps = stamps_of(folder, manifest.files)
    if verify:
        require_machine(
            backend, manifest, trust=trust
        )  # to hash gigabytes first would take seconds
        manifest.verify(folder)
    weights = {name: weight_files(folder / name, manifest.files) for name in GRAPHS}
    choice = choose(backend, folder, manifest, hashed=verify, trust=trust).with_settings(cuda)
    precision, entry = manifest.precision["precision"], choice.engine or {}
    engine = EngineOptions(
        host_code=bool(entry.get("version_compatible")),  # one that was chosen is trusted
        refit_from=folder / GRAPH if entry.get("options", {}).get("strip_weights") else None,
    )

    def opened(backend: str, name: str, spec: GraphSpec) -> Session:
        beside = weights.get(name, ())
        return open_session(
            backend,
            folder / name,
            spec,
            threads=threads,
            content=Content(manifest.content_of(name, beside), beside),
            precision=precision,
            engine=engine,
            cuda=cuda,
        )

    with ExitStack() as stack:  # nothing stays open behind an error
        model = stack.enter_context(opened(choice.backend, choice.file, manifest.model))
        audio_backend = "auto" if choice.backend in GPU_BACKENDS else choice.backend
        audio = stack.enter_context(opened(audio_backend, "audio.onnx", manifest.audio))
        if verify:
            require_unchanged(folder, stamps)
        pipeline = SavePipeline(
            config=manifest.config,
            precision=precision,
            audio=audio,
            model=model,
            threshold=threshold,
        )
        if self_test or (self_test is None and choice.machine is not None):
            run_self_test(pipeline, folder, manifest, choice, again=bool(self_test))
        stack.pop_all()
    return pipeline


def _source(sound: Any, rate: int | None) -> Callable[[int], Waveform]:
    """second -> its waveform (n,), for ascending seconds. Raises DataError for what is no sound."""
    if callable(sound):
        return _resampled(cast(Callable[[int], Waveform], sound), rate)
    if hasattr(sound, "__array__") or isinstance(sound, (str, PathLike)) or _is_flat(sound):
        return partial(_second_of, as_sound(sound, rate))
    if not isinstance(sound, Iterable) or isinstance(sound, (Mapping, Set, bytes, bytearray)):
        raise DataError(
            "wrong sound",
            got=type(sound).__name__,
            expected="a waveform (n,), an iterable of seconds, or a function second -> waveform",
        )
    return _resampled(_in_order(iter(sound)), rate)


def _resampled(at: Callable[[int], Waveform], rate: int | None) -> Callable[[int], Waveform]:
    """The same at 16 kHz; a second without samples stays one."""
    if rate is None:
        return at

    def resampled(second: int) -> Waveform:
        given = at(second)
        return as_sound(given, rate) if np.size(given) else _SILENCE

    return resampled


def _is_flat(sound: Any) -> bool:
    """Samples, and no waveforms of seconds."""
    return isinstance(sound, (list, tuple)) and all(np.ndim(x) == 0 for x in sound[:1])


def _second_of(waveform: Waveform, second: int) -> Waveform:
    return waveform[WINDOW_SAMPLES * second : WINDOW_SAMPLES * (second + 1)]


def _in_order(seconds: Iterator[Waveform]) -> Callable[[int], Waveform]:
    """Those between the seconds asked for are skipped unheard."""
    done, ended = -1, False

    def at(second: int) -> Waveform:
        nonlocal done, ended
        window = _SILENCE
        while done < second and not ended:
            try:
                window, done = next(seconds), done + 1
            except StopIteration:
                window, ended = _SILENCE, True
        done = second
        return window

    return at
