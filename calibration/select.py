"""Calibration pairs stratified by category, number of sources and loudness.

A first pass reads twice as many candidates as wanted. A second pass reads the selected ones again,
so that only selected frames are held in memory, at model resolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.calibration import videos
from save_deploy.calibration.pairs import (
    REAL_DATA,
    Pairs,
    frame_roughness,
    read_sample,
    refuse_silence,
    refuse_unreal_frames,
    spread_positions,
)
from save_deploy.data.audio import Waveform, is_silent
from save_deploy.data.open import open_dataset
from save_deploy.data.sample import ClipDataset, Sample
from save_deploy.data.skipping import SkippingDataset, reason
from save_deploy.data.transforms import resize_frame, resize_mask
from save_deploy.errors import DataError

MIN_PAIRS = 32
LOOKED_AT = 2  # candidates per wanted pair
LOUD = 0.1  # root mean square from which a second is loud (-20 dB)
RANDOM = ("random", "noise")
SILENT_SHARE = 10  # at most one silent pair in 10
GENERATED = ("scenes", "stamps")
NO_SPLIT = "none"  # Selection.split of videos


@dataclass(frozen=True)
class Selection:
    """Selected pairs and a description of the selection.

    source, split: dataset and split of the pairs.
    strata: number of pairs by stratum.
    not_stratified: reasons why pairs could not be stratified by an attribute.
    skipped: clip or file name -> reason.
    """

    pairs: Pairs
    source: str
    split: str
    strata: dict[str, dict[str, int]]
    not_stratified: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the selection for a manifest: hashes instead of pixels and samples."""
        return {
            "source": self.source,
            "split": self.split,
            "pairs": len(self.pairs),
            "sha256": self.pairs.sha256,
            "names": list(self.pairs.names),
            "pair_sha256": list(self.pairs.pair_sha256),
            "strata": self.strata,
            "not_stratified": list(self.not_stratified),
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class _Candidate:
    """A candidate pair; `sources` is None when the data has no labels of sources."""

    clip: int
    frame: int
    name: str
    category: str
    sources: int | None
    loudness: str


def select_pairs(
    name: str,
    n: int,
    *,
    res: int,
    split: str = "train",
    seed: int = 0,
    source: str = "auto",
    skip_bad: bool = False,
    on_clip: Callable[..., object] = lambda *_: None,
) -> Selection:
    """Return n stratified pairs of a dataset, a video file or a folder of videos.

    name: as in open_dataset, or a path of videos.
    n: at least MIN_PAIRS; the result has fewer pairs when the data has fewer, never below
        MIN_PAIRS.
    seed: the same seed selects the same pairs.
    skip_bad: skip unreadable clips instead of raising.
    on_clip: called for every clip read, at most 3n times.
    Raises DataError for too few pairs, for random, silent, constant or identical data, and for the
    test split.
    """
    _check_request(name, n, split)
    clips, skipped = _open(name, n, split, seed=seed, source=source, skip_bad=skip_bad)
    found: list[_Candidate] = []
    for clip, frame in spread_positions(clips, LOOKED_AT * n, np.random.default_rng(seed)):
        try:
            found.append(_look(clip, frame, read_sample(clips, clip, frame)))
        except DataError as error:
            if not skip_bad:
                raise
            skipped[_clip_name(clips, clip)] = reason(error)
        on_clip()
    kept = _keep(found, n)
    _check_enough(name, found, kept, skipped)
    pairs, roughness = _read(clips, kept, res, on_clip)
    refuse_silence(list(pairs.waveform), pairs.names)
    refuse_unreal_frames(pairs, roughness)
    if (distinct := len(set(pairs.pair_sha256))) < MIN_PAIRS:
        raise _too_few(f"{distinct} distinct pairs among {len(pairs)} of {name}")
    strata, missing = _strata(kept)
    shown = NO_SPLIT if isinstance(clips, videos.VideoClips) else split
    return Selection(pairs, name, shown, strata, missing, skipped)


def is_generated(name: str) -> bool:
    """Return whether `name` is a generated dataset (scenes or stamps)."""
    return name.partition(":")[0] in GENERATED


def _check_request(name: str, n: int, split: str) -> None:
    """Raise DataError for random data, the test split, and fewer than MIN_PAIRS pairs."""
    if name.partition(":")[0].lower() in RANDOM and not Path(name).exists():
        raise DataError(
            "calibration on random data is refused",
            got=name,
            expected="real frames and sounds: ranges of noise do not fit them",
            hint=REAL_DATA,
        )
    if split == "test":
        raise DataError(
            "calibration on the test split is refused",
            got=f"{split} of {name}",
            expected="train or val: accuracy on the test split must be measured on unseen clips",
            hint="--calib-split train or --calib-split val",
        )
    if n < MIN_PAIRS:
        raise _too_few(f"{n} requested")


def check_data(name: str, n: int, split: str, *, skip_bad: bool = False) -> None:
    """Raise DataError for data that select_pairs refuses before it reads a clip."""
    _check_request(name, n, split)
    _open(name, n, split, seed=0, source="auto", skip_bad=skip_bad)


def _open(
    name: str, n: int, split: str, *, seed: int, source: str, skip_bad: bool
) -> tuple[ClipDataset, dict[str, str]]:
    """Return the clips, which raise for a bad clip, and the files or rows skipped so far."""
    if videos.is_videos(name):
        found = videos.VideoClips(Path(name), skip_bad=skip_bad)
        return found, found.skipped
    clips = open_dataset(
        name,
        split=split,
        n_clips=LOOKED_AT * n if is_generated(name) else None,
        seed=seed,
        n_sources=None if name in GENERATED else 1,  # as in training: zero, one or two sources
        source=source,
        skip_bad=skip_bad,
    )
    return (clips.clips, clips.skipped) if isinstance(clips, SkippingDataset) else (clips, {})


def _look(clip: int, frame: int, sample: Sample) -> _Candidate:
    sources = None if sample.labels is None else len(sample.sounding)
    loudness = loudness_of(sample.heard())
    return _Candidate(clip, frame, sample.name, sample.category, sources, loudness)


def loudness_of(second: Waveform) -> str:
    """Return silent, quiet or loud, by root mean square."""
    if is_silent(second):
        return "silent"
    return "loud" if np.sqrt(np.mean(np.square(second, dtype=np.float64))) >= LOUD else "quiet"


def _clip_name(clips: ClipDataset, index: int) -> str:
    named: Sequence[Any] = getattr(clips, "items", None) or getattr(clips, "stretches", [])
    return named[index].name if named else f"clip {index + 1}"


def _keep(found: list[_Candidate], n: int) -> list[_Candidate]:
    """Return n balanced candidates with the silent share of the data, at least 1, at most 10 %."""
    silent = [c for c in found if c.loudness == "silent"]
    heard = [c for c in found if c.loudness != "silent"]
    if not silent or not heard:
        return _spread(found, n)
    share = min(max(1, round(n * len(silent) / len(found))), max(1, n // SILENT_SHARE), len(silent))
    kept = _spread(heard, n - share)
    return kept + _spread(silent, min(share, max(1, len(kept) // (SILENT_SHARE - 1))))


def _spread(found: list[_Candidate], n: int) -> list[_Candidate]:
    """Return n candidates, chosen greedily.

    Each step takes the candidate whose category, loudness and number of sources were chosen least
    often so far, the first one among equals.
    """
    counts: Counter[tuple[str, object]] = Counter()
    left, kept = list(found), list[_Candidate]()
    while left and len(kept) < n:
        best = min(left, key=lambda c: tuple(counts[stratum] for stratum in _strata_of(c)))
        left.remove(best)
        kept.append(best)
        counts.update(_strata_of(best))
    return kept


def _strata_of(c: _Candidate) -> tuple[tuple[str, object], ...]:
    return ("category", c.category), ("loudness", c.loudness), ("sources", c.sources)


def _check_enough(
    name: str, found: list[_Candidate], kept: list[_Candidate], skipped: dict[str, str]
) -> None:
    if len(kept) >= MIN_PAIRS:
        return
    got = f"{len(found)} pairs of {name}"
    if silent := sum(c.loudness == "silent" for c in found):
        got += f", {silent} of them silent (at most one in {SILENT_SHARE} is used)"
    if skipped:
        where, why = next(iter(skipped.items()))
        got += f"; {len(skipped)} skipped, the first: {where}: {why}"
    raise _too_few(got)


def _too_few(got: str) -> DataError:
    return DataError(
        "too few pairs to calibrate on", got=got, expected=f"at least {MIN_PAIRS} pairs"
    )


def _read(
    clips: ClipDataset, kept: list[_Candidate], res: int, on_clip: Callable[..., object]
) -> tuple[Pairs, list[float]]:
    """Read the selected pairs at model resolution, and the roughness of each frame.

    The roughness is the larger of that at the original size and that at model resolution.
    """
    n = len(kept)
    image = np.empty((n, res, res, 3), np.uint8)
    truth = np.empty((n, res, res), np.bool_)
    waveforms, roughness = [], []
    for i, chosen in enumerate(kept):
        sample = read_sample(clips, chosen.clip, chosen.frame)
        image[i] = resize_frame(sample.frame, res)
        truth[i] = resize_mask(sample.mask, res)
        waveforms.append(sample.heard())
        roughness.append(max(frame_roughness(sample.frame), frame_roughness(image[i])))
        on_clip()
    return Pairs(image, np.stack(waveforms), truth, tuple(c.name for c in kept)), roughness


def _strata(kept: list[_Candidate]) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """Return the number of pairs by stratum, and the attributes that the data lacks."""
    missing = []
    loudness = Counter(c.loudness for c in kept)
    strata = {"loudness": {level: loudness[level] for level in ("silent", "quiet", "loud")}}
    categories = Counter(c.category for c in kept)
    if set(categories) == {""}:
        missing.append("category: the data has none")
    else:
        strata["category"] = dict(sorted(categories.items()))
        if len(categories) == 1:
            missing.append(f"category: all are {kept[0].category}")
    sources = Counter(c.sources for c in kept if c.sources is not None)
    if sources.total() < len(kept):
        missing.append("number of sources: the data has no labels")
    else:
        strata["sources"] = {str(k): sources[k] for k in sorted(sources)}
    return strata, tuple(missing)
