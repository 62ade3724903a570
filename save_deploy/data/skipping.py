"""Dataset wrapper that skips unreadable clips and records the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from save_deploy.data.sample import Clip, ClipDataset, FrameDataset, Sample
from save_deploy.errors import DataError


class SkippingDataset:
    """Wrapper whose iteration yields only readable clips. `skipped` maps name to reason.

    len() counts all clips. Indexing reads exactly that clip, so it raises DataError for a bad one.
    is_part: others read further clips, so it is no error that none of these can be read.
    """

    def __init__(
        self, clips: ClipDataset, bad_rows: Mapping[str, DataError] | None = None, *,
        is_part: bool = False,
    ) -> None:  # fmt: skip
        self.clips, self.is_part = clips, is_part
        self.skipped = {where: reason(error) for where, error in (bad_rows or {}).items()}

    def over(self, clips: ClipDataset, *, is_part: bool = False) -> SkippingDataset:
        """Wrap clips that are derived from these; both share `skipped`."""
        other = SkippingDataset(clips, is_part=is_part)
        other.skipped = self.skipped
        return other

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]

    def __iter__(self) -> Iterator[Clip]:
        """Yield the readable clips. Raises DataError at the end when there is none of the whole."""
        good = False
        for i in range(len(self.clips)):
            try:
                clip = self.clips[i]
            except DataError as error:
                self._skip(i, error)
                continue
            good = True
            yield clip
        if not good and not self.is_part:
            raise self._all_bad()

    def pairs(self) -> list[tuple[int, int]]:
        """Return (clip, frame) of every annotated frame, including those that cannot be read."""
        return self._frames().pairs()

    def sample(self, index: int, frame: int) -> Sample:
        """Read a frame, or the next readable one when it cannot be read."""
        clips = self._frames()
        try:
            return clips.sample(index, frame)
        except DataError as error:
            self._skip(index, error)
        pairs = clips.pairs()
        start = pairs.index((index, frame)) + 1
        for step in range(len(pairs) - 1):
            index, frame = pairs[(start + step) % len(pairs)]
            try:
                return clips.sample(index, frame)
            except DataError as error:
                self._skip(index, error)
        raise self._all_bad()

    def _frames(self) -> FrameDataset:
        if isinstance(self.clips, FrameDataset):
            return self.clips
        raise DataError(
            "frames are known only after reading",
            got=type(self.clips).__name__,
            expected="a dataset folder",
        )

    def _skip(self, index: int, error: DataError) -> None:
        self.skipped[_name(self.clips, index)] = reason(error)

    def _all_bad(self) -> DataError:
        first = next(iter(self.skipped.values()), "")
        return DataError(
            "no clip can be read",
            got=f"{len(self.skipped)} bad, the first: {first}",
            expected="one good",
        )


def reason(error: DataError) -> str:
    """Return an error in one line: what, and the file with its metadata row."""
    return " ".join(f"{error.what}: {error.got}".split())


def iter_clips(dataset: ClipDataset) -> Iterator[Clip]:
    """Yield all clips in order, only the readable ones of a SkippingDataset."""
    if isinstance(dataset, SkippingDataset):
        yield from dataset
        return
    for i in range(len(dataset)):
        yield dataset[i]


def _name(clips: ClipDataset, index: int) -> str:
    while hasattr(clips, "clips"):  # unwrap SwappedSound and subsets
        index = clips.chosen[index] if hasattr(clips, "chosen") else index
        clips = clips.clips
    items = getattr(clips, "items", None)
    return items[index].name if items else f"clip {index + 1}"
