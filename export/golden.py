"""Golden samples: inputs, the outputs of the eager model, and their files in a bundle.

golden/ has real pairs in the form of graph inputs. conformance/ has generated image and sound
files: odd shapes, grayscale, with alpha, other sampling rates and channel counts, short and silent.
runtime/golden.py reads both.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from save_deploy.calibration.pairs import Pairs
from save_deploy.data.audio import Waveform, read_waveform, second
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.scenes import Scenes
from save_deploy.data.transforms import Frame, read_frame, resize_frame
from save_deploy.errors import ExportError
from save_deploy.metrics.budget import ParityBudget
from save_deploy.metrics.latency import LatencyResult
from save_deploy.runtime.compare.others import Watch
from save_deploy.runtime.enlarge import at_frame_size
from save_deploy.runtime.golden import (
    ANSWERS,
    BACKGROUND,
    CONFORMANCE,
    FOREGROUND,
    GOLDEN,
    UNDECIDED,
    Answers,
    Tolerances,
    sounding_share,
)
from save_deploy.runtime.pipeline import SavePipeline

_LOGITS_SIDE = 64  # stored logits have at most this side, to keep the files small
# Pixels with |logit| up to this are undecided when no logit error bound is set (FP16, INT8).
_WIDE_MARGIN = 0.5


@dataclass(frozen=True)
class Golden:
    """N pairs with eager embedding (N,128), eager logits (N,S,S) and the eager time per frame."""

    pairs: Pairs
    audio_embedding: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    eager_latency: LatencyResult

    @property
    def sounding_share(self) -> float:
        return sounding_share(self.mask_logits)


def run_golden(
    pipeline: SavePipeline, pairs: Pairs, on_pair: Callable[..., object] = lambda **_: None,
    *, threads: int | None = None, timed: int | None = None,
) -> Golden:  # fmt: skip
    """Run the eager model on the pairs.

    on_pair: called as on_pair(n=number of pairs just done).
    threads: of the pipeline; None for all cores.
    timed: how many calls of `pipeline.batch` pairs are timed; the other pairs are run as the pipeline
        runs several frames. None times all.
    Raises ExportError for NaN or infinite outputs.
    """
    embeddings = np.concatenate([pipeline.embed(waveform) for waveform in pairs.waveform])
    logits, samples, batch = [], [], pipeline.batch
    n_timed = len(pairs) if timed is None else min(timed * batch, len(pairs))
    starts, watch = range(0, n_timed, batch), Watch(threads)
    for _, start in zip(watch.rounds(len(starts)), starts, strict=False):
        chosen = slice(start, start + batch)
        begin = time.perf_counter()
        logits.append(pipeline.run(pairs.image[chosen], embeddings[chosen]))
        samples.append((time.perf_counter() - begin) * 1000)
        watch.round_done()
        on_pair(n=len(pairs.image[chosen]))
    if n_timed < len(pairs):
        logits.append(pipeline.run(pairs.image[n_timed:], embeddings[n_timed:]))
        on_pair(n=len(pairs) - n_timed)
    latency = LatencyResult(watch.pick(samples), batch, watch.result())
    golden = Golden(pairs, embeddings, np.concatenate(logits), latency)
    if not (np.isfinite(golden.mask_logits).all() and np.isfinite(golden.audio_embedding).all()):
        raise ExportError(
            "the eager model returns NaN or infinite values",
            got="non-finite logits on golden samples",
            expected="finite logits",
            hint="check the checkpoint",
        )
    return golden


def write_golden(folder: Path, golden: Golden) -> dict[str, object]:
    """Write golden/*.npy in the bundle and return its manifest entry."""
    place = folder / GOLDEN
    place.mkdir()
    np.save(place / "image.npy", golden.pairs.image)
    np.save(place / "truth.npy", golden.pairs.truth)
    Answers(golden.pairs.waveform, golden.audio_embedding, golden.mask_logits).write(place)
    return {
        "n": len(golden.pairs),
        "names": list(golden.pairs.names),
        "data_sha256": golden.pairs.sha256,
        "audio_embedding_tolerance": 1e-3,
        "sounding_share": round(golden.sounding_share, 6),
    }


def predict_golden(pipeline: SavePipeline, pairs: Pairs) -> NDArray[np.float32]:
    """Return logits (N,S,S) of a pipeline on the pairs, including its audio encoder."""
    embeddings = np.concatenate([pipeline.embed(waveform) for waveform in pairs.waveform])
    return pipeline.run(pairs.image, embeddings)


@dataclass(frozen=True)
class Case:
    """Format of one image and sound file.

    size_px: (width, height), in eighths of the resolution when of_res is True.
    seconds: length of the sound.
    """

    name: str
    size_px: tuple[int, int]
    mode: str = "RGB"
    rate_hz: int = SAMPLE_RATE_HZ
    channels: int = 1
    seconds: float = 1.1
    subtype: str = "PCM_16"
    loudness: float = 1.0
    of_res: bool = False

    def size_at(self, res: int) -> tuple[int, int]:
        """Return (width, height) in px for a model of this resolution."""
        width, height = self.size_px
        return (width * res // 8, height * res // 8) if self.of_res else (width, height)


CASES = (
    Case("normal", (256, 256)),
    Case("silence", (320, 180), loudness=0.0),
    Case("short", (53, 80), "L", seconds=0.3),
    Case("rate_8000", (120, 90), "RGBA", rate_hz=8_000),
    Case("rate_44100", (37, 211), rate_hz=44_100),
    Case("rate_48000_stereo", (640, 360), rate_hz=48_000, channels=2),
    Case("one_pixel", (1, 1), rate_hz=22_050, subtype="PCM_24"),
    Case("palette", (257, 255), "P", rate_hz=11_025, channels=3, subtype="FLOAT"),
    # height shrinks more than twice as much as width: Pillow resizes vertically first in this case
    Case("portrait", (9, 11), of_res=True),
)
_FILES = {"frame": ".png", "sound": ".wav", "mask": "_mask.png"}  # of a case, after its name
FEW = ("normal", "silence", "short", "rate_48000_stereo", "portrait")


def write_conformance(
    folder: Path, pipeline: SavePipeline, budget: ParityBudget, *, few: bool = False
) -> dict[str, Any]:
    """Write conformance/ in the bundle with the outputs of the eager pipeline; return its entry.

    budget: parity budget of the bundle; it gives the tolerance of logits and the mask agreement.
    few: write only the cases in FEW, for models that take seconds per frame.
    """
    place = folder / CONFORMANCE
    place.mkdir()
    tolerances = Tolerances(mask_logits=budget.max_abs_err, min_agreement=budget.min_agreement)
    margin = _WIDE_MARGIN if budget.max_abs_err is None else budget.max_abs_err
    step = max(1, pipeline.config.res // _LOGITS_SIDE)
    cases, images, waveforms, seen = [], [], [], []
    for case, frame, sound in _inputs(few):
        picture, recording = (place / f"{case.name}{_FILES[kind]}" for kind in ("frame", "sound"))
        _write_frame(picture, frame, case, pipeline.config.res)
        _write_sound(recording, sound, case)
        cases.append(case)
        images.append(read_frame(picture))
        waveforms.append(read_waveform(recording))
        seen.append(np.ascontiguousarray(resize_frame(images[-1], pipeline.config.res)))
    embeddings = np.concatenate([pipeline.embed(waveform) for waveform in waveforms])
    logits = pipeline.run(np.stack(seen), embeddings)
    rows = []
    for case, image, network_image, found in zip(cases, images, seen, logits, strict=True):
        names = {kind: f"{case.name}{end}" for kind, end in _FILES.items()}
        mask = _three_valued(at_frame_size(found, image.shape[:2]), margin)
        Image.fromarray(mask).save(place / names["mask"])
        rows.append(
            {
                "name": case.name,
                **{kind: f"{CONFORMANCE}/{name}" for kind, name in names.items()},
                "image_sha256": hashlib.sha256(network_image.tobytes()).hexdigest(),
            }
        )
    sounds = np.stack([second(waveform) for waveform in waveforms]).astype(np.float32)
    Answers(sounds, embeddings, np.ascontiguousarray(logits[:, ::step, ::step])).write(place)
    return {
        "cases": rows,
        **{name: f"{CONFORMANCE}/{name}.npy" for name in ANSWERS},
        "logits_step": step,
        "margin": margin,
        "tolerances": asdict(tolerances),
    }


def _inputs(few: bool) -> Iterator[tuple[Case, Frame, Waveform]]:
    """Yield each case with a frame and audio of a generated scene that has a sounding object."""
    scenes = Scenes(n_clips=len(CASES), seed=7)
    for index, case in enumerate(CASES):
        if not few or case.name in FEW:
            clip = scenes[index]
            yield case, clip.frames[0], clip.waveform


def _write_frame(path: Path, frame: Frame, case: Case, res: int) -> None:
    width, height = case.size_at(res)
    image = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    if case.mode == "P":
        image = image.quantize(64)
    elif case.mode == "RGBA":  # readers must drop alpha, not blend it
        alpha = np.linspace(0, 255, width).astype(np.uint8)
        image.putalpha(Image.fromarray(np.tile(alpha, (height, 1))))
    else:
        image = image.convert(case.mode)
    image.save(path)


def _write_sound(path: Path, waveform: Waveform, case: Case) -> None:
    """Write the waveform at the case's sampling rate.

    Channel c is scaled by 1 - 0.3 c.
    """
    import soundfile

    at = np.arange(int(case.seconds * case.rate_hz)) / case.rate_hz * SAMPLE_RATE_HZ
    sound = case.loudness * np.interp(at, np.arange(waveform.size), waveform)
    channels = [sound * (1 - 0.3 * c) for c in range(case.channels)]
    soundfile.write(path, np.stack(channels, axis=1), case.rate_hz, subtype=case.subtype)


def _three_valued(logits: NDArray[np.float32], margin: float) -> NDArray[np.uint8]:
    """Return background, foreground, or undecided where |logit| <= margin."""
    mask = np.where(logits > 0, FOREGROUND, BACKGROUND)
    return np.where(np.abs(logits) <= margin, UNDECIDED, mask).astype(np.uint8)
