"""Checks that calibration pairs are not among the pairs that accuracy is measured on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from save_deploy.calibration.pairs import Pairs, pair_digest
from save_deploy.calibration.select import Selection, is_generated
from save_deploy.calibration.videos import SUFFIXES, is_videos
from save_deploy.data.find import resolve
from save_deploy.data.open import list_released
from save_deploy.data.released import Item, ReleasedClips
from save_deploy.data.transforms import resize_frame
from save_deploy.errors import DataError

HINT = "--calib-split train or val, or another --calib-data"
# pair names: clip_3 from a dataset, film.mp4_12.5s_3 from a video
_OF_VIDEO = re.compile(rf"(.+)(?:{'|'.join(map(re.escape, SUFFIXES))})_[\d.]+s_\d+", re.IGNORECASE)


def refuse_overlap(selection: Selection, other: Pairs, what: str) -> None:
    """Raise DataError, naming the first pair, when a calibration pair is also one of `other`.

    what: describes `other` in the message.
    Both must have the same image size, because a pair at another size has another hash; ValueError
    otherwise.
    """
    if selection.pairs.image.shape[1:] != other.image.shape[1:]:
        raise ValueError(f"{selection.pairs.image.shape[1:]} against {other.image.shape[1:]}")
    names = dict(zip(other.pair_sha256, other.names, strict=True))
    for name, digest in zip(selection.pairs.names, selection.pairs.pair_sha256, strict=True):
        if digest in names:
            raise DataError(
                f"calibration overlaps {what}",
                got=f"{name}, the same frame and sound as {names[digest]}",
                expected=f"no pair of {what}",
                hint=HINT,
            )


def refuse_test_clips(name: str, selection: Selection, *, source: str = "auto") -> None:
    """Raise DataError when a calibration pair belongs to the test split of dataset `name`.

    Clips are compared by name, without reading media. To find the same pair under another name, a
    test clip is read only when the file of a frame has the same size as that of a calibration
    frame. Splits of generated data are disjoint by construction, and videos have no test split.
    """
    tested = _tested(name, source)
    if tested is None:
        return
    _refuse_names(selection.pairs.names, tested, "calibration overlaps the test split", HINT)
    chosen = list_released(resolve(name), selection.split, source=source).items
    _refuse_twins(selection, chosen, tested)


def refuse_test_names(
    pairs: Iterable[str], data: str, what: str, *, hint: str = HINT, source: str = "auto"
) -> None:
    """Raise DataError when a pair has the name of a test clip of dataset `data`.

    For pairs from elsewhere (a finished table, a folder of videos), where only names can be
    compared. Generated clips have different names in every split.
    pairs: pair names.
    data: dataset whose test split accuracy is measured on.
    what: describes the origin of the pairs in the message.
    """
    tested = _tested(data, source)
    if tested is not None:
        _refuse_names(pairs, tested, f"{what} overlaps the test split of {Path(data).name}", hint)


def clip_of(pair: str) -> str:
    """Return the clip name of a pair name; for a pair of a video, the file name without suffix."""
    video = _OF_VIDEO.fullmatch(pair)
    return video[1] if video else pair.rpartition("_")[0]


def _tested(name: str, source: str) -> ReleasedClips | None:
    """Return the test split of a released dataset, or None when there is none."""
    if is_generated(name) or is_videos(name):
        return None
    place = resolve(name)
    if "test" not in place.splits or place.metadata("test") is None:
        return None
    return list_released(place, "test", source=source)


def _refuse_names(pairs: Iterable[str], tested: ReleasedClips, what: str, hint: str) -> None:
    """Raise DataError for the first pair whose clip is in `tested`, by name."""
    by_name = {item.name: item for item in tested.items}
    for pair in pairs:
        if (clip := clip_of(pair)) in by_name:
            raise _overlap(pair, f"listed as test clip in {by_name[clip].where}", what, hint)


def _refuse_twins(selection: Selection, chosen: list[Item], tested: ReleasedClips) -> None:
    """Raise DataError for a test pair with the same pixels and samples as a calibration pair."""
    by_name = {item.name: item for item in chosen}
    sizes = set()
    for pair in selection.pairs.names:
        clip, _, number = pair.rpartition("_")
        if clip in by_name:
            sizes.add(_size(by_name[clip], int(number) - 1))
    digests = dict(zip(selection.pairs.pair_sha256, selection.pairs.names, strict=True))
    res = selection.pairs.image.shape[1]
    for i, k in tested.pairs():
        if (size := _size(tested.items[i], k)) is None or size not in sizes:
            continue
        try:
            sample = tested.sample(i, k)
            digest = pair_digest(resize_frame(sample.frame, res), sample.heard())
        except DataError:
            continue  # an unreadable clip cannot be a calibration pair
        if digest in digests:
            raise _overlap(
                digests[digest], f"the same frame and sound as {sample.name} of the test split"
            )


def _size(item: Item, frame: int) -> int | None:
    """Return the size in bytes of the file of a frame, or None when it does not exist."""
    path: Path = item.video or item.frames[frame]
    return path.stat().st_size if path.is_file() else None


def _overlap(
    pair: str, why: str, what: str = "calibration overlaps the test split", hint: str = HINT
) -> DataError:
    return DataError(
        what,
        got=f"{pair}, {why}",
        expected="clips of other splits: otherwise accuracy on the test split is invalid",
        hint=hint,
    )
