"""Selection of the few frames whose masks differ most from the reference."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from save_deploy.data.transforms import Mask
from save_deploy.metrics.parity import mask_agreement
from save_deploy.runtime.html.data import ReportFrame

# larger is worse: 1 - IoU, flipped pixels, minus the index of the frame
Badness = tuple[float, int, int]


class WorstFrames:
    """Keeps the n worst frames in a heap whose top is the least bad of them."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._heap: list[tuple[Badness, ReportFrame]] = []

    def offer(
        self, reference: Mask, masks: Mapping[str, Mask], index: int,
        make: Callable[[], ReportFrame],
    ) -> None:  # fmt: skip
        """Offer a frame with masks (S,S) by row.

        index: must increase from frame to frame.
        make: called when the frame is kept.
        """
        if not self.n or not masks:
            return
        badness = frame_badness(reference, masks, index)
        if len(self._heap) < self.n:
            heapq.heappush(self._heap, (badness, make()))
        elif badness > self._heap[0][0]:
            heapq.heapreplace(self._heap, (badness, make()))

    def worst_first(self) -> list[ReportFrame]:
        return [frame for _, frame in sorted(self._heap, key=lambda item: item[0], reverse=True)]


def frame_badness(reference: Mask, masks: Mapping[str, Mask], index: int) -> Badness:
    """Return the badness of the row that agrees least.

    Ties go to more flipped pixels, then to the earlier frame.
    """
    lost, flipped = max(_lost(reference, mask) for mask in masks.values())
    return lost, flipped, -index


def worst_row(reference: Mask, masks: Mapping[str, Mask]) -> str:
    """Return the name of the row that agrees least."""
    return max(masks, key=lambda name: _lost(reference, masks[name]))


def _lost(reference: Mask, mask: Mask) -> tuple[float, int]:
    """Return 1 - IoU, and the number of different pixels."""
    return 1.0 - mask_agreement(reference, mask), int((reference ^ mask).sum())
