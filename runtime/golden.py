"""Golden samples and conformance pack: pairs of frame and sound with the eager model's outputs.

golden/ contains inputs of the graphs and checks the graphs. conformance/ contains files and also
checks how a client, in any language, prepares frames and sounds. export/golden.py writes both; every
client reads them (C++: runtime/cpp/tools/conformance.hpp).
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
# Values of the expected masks. UNDECIDED: the logit is too close to 0, either mask is accepted.
BACKGROUND, UNDECIDED, FOREGROUND = 0, 128, 255
_HINT = "export again with this version of save-deploy"
# Smallest share of sounding (and of silent) golden pixels for which agreement is meaningful.
MIN_SHARE = 1e-3


@dataclass(frozen=True)
class Answers:
    """Prepared sounds and the eager model's outputs for N samples.

    waveform: float32 (N,16000), input of the audio graph.
    audio_embedding: float32 (N,128).
    mask_logits: float32 (N,S,S); in the conformance pack every logits_step-th row and column.
    """

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
    """Golden samples: image uint8 (N,S,S,3) and the expected answers."""

    image: NDArray[np.uint8]
    answers: Answers


@dataclass(frozen=True)
class Tolerances:
    """Largest absolute errors of the conformance pack; image tensors must be identical.

    audio_embedding: multiplied by the largest expected value if that is above 1.
    mask_logits: None for no limit.
    min_agreement: smallest IoU of the decided pixels.
    """

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
    """Files of one conformance case.

    frame, sound: files in any supported format.
    image_sha256: hash of the image tensor prepared from the frame.
    mask: expected mask at frame size.
    """

    name: str
    frame: Path
    sound: Path
    image_sha256: str
    mask: Path


@dataclass(frozen=True)
class Pack:
    """Conformance pack: one FilePair per answer."""

    pairs: tuple[FilePair, ...]
    answers: Answers
    logits_step: int
    tolerances: Tolerances


def read_golden(bundle: Path, manifest: Manifest) -> Golden:
    """Read the golden samples. Raises BundleError if they are missing or have another shape."""
    if not manifest.golden:
        raise BundleError("bundle without golden samples", got=str(bundle), hint=_HINT)
    place, n, side = bundle / GOLDEN, manifest.golden["n"], manifest.config.res
    answers = _read_answers({name: place / f"{name}.npy" for name in ANSWERS}, n, side)
    return Golden(_read_array(place / "image.npy", np.uint8, (n, side, side, 3)), answers)


def read_pack(bundle: Path, manifest: Manifest) -> Pack:
    """Read the conformance pack. Raises BundleError if it is missing or cannot be read."""
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
    """Return the share of sounding pixels in golden masks (N,S,S), 0 to 1."""
    return float(np.mean(mask_logits > 0))


def one_sided(share: float) -> str:
    """Return a warning if golden masks with this sounding share are all empty or all full, else ""."""
    if MIN_SHARE <= share <= 1 - MIN_SHARE:
        return ""
    kind = "empty" if share < MIN_SHARE else "full"
    return f"the golden masks are {kind} ({share:.2%} of them sounds): agreement on them proves nothing"


def embedding_bound(expected: NDArray[np.float32], tolerance: float) -> float:
    """Return the error bound of an embedding: the tolerance, scaled by its largest value if above 1."""
    return tolerance * max(1.0, float(np.abs(expected).max()))


def _read_answers(paths: Mapping[str, Path], n: int, side: int) -> Answers:
    shapes = {
        "waveform": (n, WINDOW_SAMPLES),
        "audio_embedding": (n, AUDIO_DIM),
        "mask_logits": (n, side, side),
    }
    return Answers(**{name: _read_array(paths[name], np.float32, shapes[name]) for name in ANSWERS})


def _read_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a finite array from .npy; its header is checked before allocation. Raises BundleError."""
    try:
        with np.errstate(over="ignore"):  # a header may contain a shape whose size overflows
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
