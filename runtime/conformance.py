"""Does this client prepare frames and sounds as the bundle's conformance pack says?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from save_deploy.bundle import Manifest
from save_deploy.data.audio import read_waveform, second
from save_deploy.data.transforms import read_frame, resize_frame
from save_deploy.errors import BundleError, ParityError
from save_deploy.runtime.pipeline import SavePipeline

FOLDER = "conformance"
# Values of the expected masks: any answer is right where the logit is too near to 0 to tell.
BACKGROUND, UNDECIDED, FOREGROUND = 0, 128, 255


@dataclass(frozen=True)
class Tolerances:
    """Largest absolute errors; images are compared bit for bit. audio_embedding is times the largest
    value where that is above 1; mask_logits None: any. min_agreement: IoU of decided pixels."""

    waveform: float = 1e-5
    audio_embedding: float = 1e-4
    mask_logits: float | None = 1e-3
    min_agreement: float = 1.0


@dataclass(frozen=True)
class Conformed:
    """How many cases were compared, and the largest differences found."""

    n_cases: int
    waveform_err: float
    embedding_err: float
    logits_err: float
    mask_agreement: float


def check_conformance(bundle: Path, pipeline: SavePipeline) -> Conformed:
    """Every case of the pack: files -> tensors -> mask.

    Raises ParityError naming the first case and stage that differs, BundleError without a pack.
    """
    entry = Manifest.read(bundle).conformance
    if not entry:
        raise BundleError(
            "bundle without a conformance pack",
            got=str(bundle),
            expected="conformance/ and its entry in the manifest",
            hint="export again with this version of save-deploy",
        )
    try:
        tolerances = Tolerances(**entry["tolerances"])
        wanted = {
            name: np.load(bundle / entry[name], allow_pickle=False)
            for name in ("waveform", "audio_embedding", "mask_logits")
        }
        cases, step = list(entry["cases"]), int(entry["logits_step"])
        files = [(c["name"], bundle / c["frame"], bundle / c["sound"]) for c in cases]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise BundleError(
            "conformance pack cannot be read", got=repr(error), expected="the pack of save-export"
        ) from error
    worst = {"waveform": 0.0, "audio_embedding": 0.0, "mask_logits": 0.0}
    inter = union = 0
    for i, (name, frame_path, sound_path) in enumerate(files):
        frame, sound = read_frame(frame_path), read_waveform(sound_path)
        seen = np.ascontiguousarray(resize_frame(frame, pipeline.config.res))
        sha256 = hashlib.sha256(seen.tobytes()).hexdigest()
        if sha256 != cases[i]["image_sha256"]:
            _differs(name, "image tensor", f"sha256 {sha256}", cases[i]["image_sha256"])
        heard = pipeline.embed(sound)
        logits = pipeline.logits(frame, heard)
        found = {
            "waveform": second(sound),
            "audio_embedding": heard[0],
            "mask_logits": sampled(logits, step),
        }
        for kind, array in found.items():
            difference = float(np.abs(array - wanted[kind][i]).max())
            tolerance = getattr(tolerances, kind)
            if kind == "audio_embedding":
                tolerance *= max(1.0, float(np.abs(wanted[kind][i]).max()))
            allowed = np.inf if tolerance is None else tolerance
            if not (np.isfinite(difference) and difference <= allowed):
                _differs(name, kind, f"{difference:.1e}", f"at most {allowed:.1e}")
            worst[kind] = max(worst[kind], difference)
        expected = read_gray(bundle / cases[i]["mask"])
        mask = resized_logits(logits, frame.shape[1], frame.shape[0]) > 0
        if expected.shape != mask.shape:
            raise BundleError("conformance mask of another size than its frame", got=name)
        decided = expected != UNDECIDED
        inter += int((decided & mask & (expected == FOREGROUND)).sum())
        union += int((decided & (mask | (expected == FOREGROUND))).sum())
    agreement = inter / union if union else 1.0
    if agreement < tolerances.min_agreement:
        raise ParityError(
            "masks differ from the conformance pack",
            got=f"IoU {agreement:.5f} of decided pixels",
            expected=f"at least {tolerances.min_agreement}",
        )
    return Conformed(
        n_cases=len(cases),
        waveform_err=worst["waveform"],
        embedding_err=worst["audio_embedding"],
        logits_err=worst["mask_logits"],
        mask_agreement=agreement,
    )


def resized_logits(logits: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """mask_logits (S,S) -> (height,width), as SavePipeline.mask resizes them."""
    image = Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def sampled(logits: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """(S,S) -> every step-th row and column."""
    return logits[::step, ::step]


def read_gray(path: Path) -> NDArray[np.uint8]:
    """(H,W) of an 8-bit gray PNG."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def _differs(name: str, what: str, got: Any, expected: Any) -> None:
    raise ParityError(
        f"{what} differs from the conformance pack",
        got=f"{name}: {got}",
        expected=str(expected),
        hint="the version of pillow in this environment may differ",
    )
