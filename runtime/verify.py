"""Verify a bundle on this machine: hashes, golden samples and conformance pack."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Manifest
from save_deploy.bundle_files import check_files, notes_on_reports
from save_deploy.data.audio import read_waveform, second
from save_deploy.data.pictures import read_frame, read_gray
from save_deploy.data.transforms import Frame, Mask, resize_frame
from save_deploy.errors import BundleError, ParityError
from save_deploy.metrics.parity import ParityResult, mask_agreement
from save_deploy.runtime.enlarge import at_frame_size
from save_deploy.runtime.golden import (
    ANSWERS,
    FOREGROUND,
    UNDECIDED,
    FilePair,
    Pack,
    embedding_bound,
    one_sided,
    read_golden,
    read_pack,
    sounding_share,
)
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.self_test import golden_parity


@dataclass(frozen=True)
class Conformed:
    """Result of the conformance pack: number of cases and the largest differences."""

    n_cases: int
    waveform_err: float
    embedding_err: float
    logits_err: float
    mask_agreement: float


@dataclass(frozen=True)
class Verified:
    """Result of verify_bundle.

    parity: on the golden samples.
    backend: the backend that ran.
    first_mask_s: seconds from opening the bundle to the first mask.
    conformed: result of the conformance pack; None without one.
    notes: reports that differ from the manifest, and golden masks that prove nothing.
    """

    parity: ParityResult
    backend: str
    first_mask_s: float
    conformed: Conformed | None
    notes: tuple[str, ...]


def verify_bundle(
    folder: Path, *, backend: str = "auto", threads: int | None = None, trust: bool = False
) -> Verified:
    """Check the hashes, then run the golden samples and the conformance pack.

    Raises BundleError, or ParityError for a result over the budget stored at export.
    """
    manifest = Manifest.read(folder)
    check_files(folder, manifest.files)  # load() passes over files that stayed as they were
    notes = notes_on_reports(folder, manifest.files)
    if manifest.golden:
        logits = read_golden(folder, manifest).answers.mask_logits
        notes += tuple(filter(None, [one_sided(sounding_share(logits))]))
    started, first = time.perf_counter(), list[float]()
    with load(folder, backend=backend, threads=threads, self_test=False, trust=trust) as pipeline:
        parity = golden_parity(
            pipeline,
            folder,
            manifest,
            hint="export again on this machine, or with --fp32",
            on_first=lambda: first.append(time.perf_counter() - started),
        )
        conformed = None
        if manifest.conformance:
            conformed = check_conformance(read_pack(folder, manifest), pipeline)
        return Verified(parity, pipeline.backend, first[0], conformed, notes)


def check_conformance(pack: Pack, pipeline: SavePipeline) -> Conformed:
    """Run every case of the pack from its files to the mask.

    Raises ParityError with the first case and stage that differ, BundleError for an expected mask
    of another size than its frame.
    """
    worst, masks = dict.fromkeys(ANSWERS, 0.0), Masks(pack)
    for i, pair in enumerate(pack.pairs):
        frame, sound = read_frame(pair.frame), read_waveform(pair.sound)
        _check_image(pair.name, frame, pair.image_sha256, pipeline.config.res)
        embedding = pipeline.embed(sound)
        logits = pipeline.logits(frame, embedding)
        found = {"waveform": second(sound), "audio_embedding": embedding[0], "mask_logits": logits}
        for kind, array in found.items():
            worst[kind] = max(worst[kind], check_answer(pack, i, kind, array))
        masks.add(pair, at_frame_size(logits, frame.shape[:2]) > 0)
    return Conformed(
        n_cases=len(pack.pairs),
        waveform_err=worst["waveform"],
        embedding_err=worst["audio_embedding"],
        logits_err=worst["mask_logits"],
        mask_agreement=masks.agreement(),
    )


class Masks:
    """Compare masks with the expected masks of a pack, on the decided pixels."""

    def __init__(self, pack: Pack) -> None:
        self._least = pack.tolerances.min_agreement
        self._found = list[NDArray[np.bool_]]()
        self._expected = list[NDArray[np.bool_]]()

    def add(self, pair: FilePair, mask: Mask) -> None:
        """Add a mask bool (H,W). Raises BundleError if the expected mask has another size."""
        marks = read_gray(pair.mask)
        if marks.shape != mask.shape:
            raise BundleError(
                "conformance mask of another size than its frame", got=pair.name,
                expected=str(mask.shape),
            )  # fmt: skip
        decided = marks != UNDECIDED
        self._found.append(mask[decided])
        self._expected.append(marks[decided] == FOREGROUND)

    def agreement(self) -> float:
        """Return the IoU over all cases. Raises ParityError if it is below the pack's limit."""
        agreement = mask_agreement(np.concatenate(self._found), np.concatenate(self._expected))
        if agreement < self._least:
            raise ParityError(
                "masks differ from the conformance pack",
                got=f"IoU {agreement:.5f} of decided pixels",
                expected=f"at least {self._least}",
            )
        return agreement


def _check_image(name: str, frame: Frame, expected: str, res: int) -> None:
    seen = np.ascontiguousarray(resize_frame(frame, res))
    sha256 = hashlib.sha256(seen.tobytes()).hexdigest()
    if sha256 != expected:
        raise _differs(name, "image tensor", f"sha256 {sha256}", expected)


def check_answer(pack: Pack, i: int, kind: str, found: NDArray[np.float32]) -> float:
    """Return the largest absolute difference from expected answer i.

    kind: waveform (16000,), audio_embedding (128,) or mask_logits (S,S).
    Raises ParityError above the pack's tolerance.
    """
    expected = getattr(pack.answers, kind)[i]
    if kind == "mask_logits":
        found = found[:: pack.logits_step, :: pack.logits_step]
    difference = float(np.abs(found - expected).max())
    allowed = getattr(pack.tolerances, kind)
    if kind == "audio_embedding":
        allowed = embedding_bound(expected, allowed)
    elif allowed is None:
        allowed = np.inf
    if not (np.isfinite(difference) and difference <= allowed):
        name = pack.pairs[i].name
        raise _differs(name, kind, f"{difference:.1e}", f"at most {allowed:.1e}")
    return difference


def _differs(name: str, what: str, got: str, expected: str) -> ParityError:
    return ParityError(
        f"{what} differs from the conformance pack",
        got=f"{name}: {got}",
        expected=expected,
        hint="the version of pillow in this environment may differ",
    )
