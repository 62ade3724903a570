"""Golden samples of a bundle: pairs of frame and sound, and what the eager model makes of them.

golden/ starts at what the graphs take: do they compute the same here? conformance/ starts at files:
does this client, in whatever language, also prepare frames and sounds the same? Written by
export/golden.py, read by every client (runtime/cpp/tools/conformance.hpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import WINDOW_SAMPLES, Manifest
from save_deploy.config import AUDIO_DIM
from save_deploy.errors import BundleError

GOLDEN, CONFORMANCE = "golden", "conformance"  # folders of a bundle
ANSWERS = ("waveform", "audio_embedding", "mask_logits")  # .npy files in both
# Values of the expected masks: any answer is right where the logit is too near to 0 to tell.
BACKGROUND, UNDECIDED, FOREGROUND = 0, 128, 255
_HINT = "export again with this version of save-deploy"
# Of all pixels of the golden masks: below it on either side, agreement says nothing of the other side.
MIN_SHARE = 1e-3


@dataclass(frozen=True)
class Answers:
    """Sounds as the audio graph takes them, float32 (N,16000), and eager's audio_embedding (N,128)
    and mask_logits (N,S,S). The pack of files has every logits_step-th row and column of the logits."""

    waveform: NDArray[np.float32]
    audio_embedding: NDArray[np.float32]
    mask_logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.waveform)

    def write(self, place: Path) -> None:
        for name in ANSWERS:
            np.save(place / f"{name}.npy", getattr(self, name))


@dataclass(frozen=True)
class Golden:
    """Prepared samples: image uint8 (N,S,S,3) and the answers."""

    image: NDArray[np.uint8]
    answers: Answers


@dataclass(frozen=True)
class Tolerances:
    """Largest absolute errors; images are compared bit for bit. audio_embedding is times the largest
    value where that is above 1; mask_logits None: any. min_agreement: IoU of decided pixels."""

    waveform: float = 1e-5
    audio_embedding: float = 1e-4
    mask_logits: float | None = 1e-3
    min_agreement: float = 1.0

    def __post_init__(self) -> None:
        bounds = (self.waveform, self.audio_embedding, self.min_agreement, self.mask_logits or 0.0)
        if not all(isinstance(v, int | float) and 0 <= v < math.inf for v in bounds):
            raise ValueError(f"tolerances {bounds}")


@dataclass(frozen=True)
class FilePair:
    """A picture and a sound of any kind that is read; the hash of the image tensor made of the picture,
    and the expected mask at its size."""

    name: str
    frame: Path
    sound: Path
    image_sha256: str
    mask: Path


@dataclass(frozen=True)
class Pack:
    """The conformance pack: one FilePair per answer."""

    pairs: tuple[FilePair, ...]
    answers: Answers
    logits_step: int
    tolerances: Tolerances


def read_golden(bundle: Path, manifest: Manifest) -> Golden:
    """Raises BundleError for a bundle without golden samples, and for arrays of another shape."""
    if not manifest.golden:
        raise BundleError("bundle without golden samples", got=str(bundle), hint=_HINT)
    place, n, side = bundle / GOLDEN, manifest.golden["n"], manifest.config.res
    answers = _read_answers({name: place / f"{name}.npy" for name in ANSWERS}, n, side)
    return Golden(_read_array(place / "image.npy", np.uint8, (n, side, side, 3)), answers)


def read_pack(bundle: Path, manifest: Manifest) -> Pack:
    """Raises BundleError for a bundle without a conformance pack, and for one that cannot be read."""
    entry = manifest.conformance
    if not entry or not entry["cases"]:
        raise BundleError(
            "bundle without a conformance pack",
            got=str(bundle),
            expected="conformance/ and its entry in the manifest",
            hint=_HINT,
        )
    try:
        tolerances = Tolerances(**entry["tolerances"])
    except (TypeError, ValueError) as error:
        raise BundleError("conformance pack cannot be read", got=str(error), hint=_HINT) from None
    pairs = tuple(
        FilePair(
            case["name"], bundle / case["frame"], bundle / case["sound"], case["image_sha256"],
            bundle / case["mask"],
        )
        for case in entry["cases"]
    )  # fmt: skip
    step = entry["logits_step"]
    side = math.ceil(manifest.config.res / step)
    answers = _read_answers({name: bundle / entry[name] for name in ANSWERS}, len(pairs), side)
    return Pack(pairs, answers, step, tolerances)


def sounding_share(mask_logits: NDArray[np.float32]) -> float:
    """Of all pixels of the golden masks (N,S,S) that sound, 0..1."""
    return float(np.mean(mask_logits > 0))


def one_sided(share: float) -> str:
    """What is wrong with golden masks of which this share sounds; "" when they hold some of both."""
    if MIN_SHARE <= share <= 1 - MIN_SHARE:
        return ""
    kind = "empty" if share < MIN_SHARE else "full"
    return f"the golden masks are {kind} ({share:.2%} of them sounds): agreement on them proves nothing"


def embedding_bound(expected: NDArray[np.float32], tolerance: float) -> float:
    """Largest absolute error of an embedding: the tolerance, times its largest value above 1."""
    return tolerance * max(1.0, float(np.abs(expected).max()))


def _read_answers(paths: Mapping[str, Path], n: int, side: int) -> Answers:
    shapes = {
        "waveform": (n, WINDOW_SAMPLES),
        "audio_embedding": (n, AUDIO_DIM),
        "mask_logits": (n, side, side),
    }
    return Answers(**{name: _read_array(paths[name], np.float32, shapes[name]) for name in ANSWERS})


def _read_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """One finite array of a .npy, checked before memory is taken for it. Raises BundleError."""
    try:
        with np.errstate(over="ignore"):  # of a shape that no memory holds
            array = np.lib.format.open_memmap(path, mode="r")
        got = f"{array.dtype} {array.shape}"
        fits = array.dtype == dtype and array.shape == shape
    except (OSError, ValueError, OverflowError, EOFError) as error:
        fits, got = False, f"{type(error).__name__}: {error}"
    if not fits:
        raise BundleError(
            "golden samples cannot be read",
            got=f"{path.name}: {got}",
            expected=f"{np.dtype(dtype)} {shape}",
            hint=_HINT,
        )
    if not np.isfinite(array).all():
        raise BundleError(
            "golden samples contain NaN or infinite values", got=path.name, hint=_HINT
        )
    return np.array(array)
