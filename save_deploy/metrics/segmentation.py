"""M_J and M_F as AVSBench computes them, without loops over thresholds (SPEC 5).

The maximum of the F-measure over thresholds is taken after averaging the curves of one batch, so it
depends on the batch. A protocol fixes the batch, and every score names its protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import SaveDeployError
from save_deploy.fields import check_word
from save_deploy.metrics.interval import Interval, bootstrap_interval

THRESHOLDS = np.linspace(0, 1 - 1e-10, 255, dtype=np.float64).astype(np.float32)
_STEPS = THRESHOLDS.size - 1
BETA2 = 0.3


@dataclass(frozen=True)
class Protocol:
    """Rules for scoring masks.

    threshold: probability above which (strictly) a pixel is foreground for M_J.
    f_input: input of the 255 thresholds 0..1 of M_F, probabilities or raw logits.
    videos_per_batch: number of videos whose curves are averaged before the maximum.
    resolution: input (model resolution, truth resized by nearest) or native (logits resized to the
        frame).
    """

    name: str
    threshold: float = 0.5
    f_input: str = "prob"
    videos_per_batch: int = 1
    resolution: str = "input"

    @property
    def text(self) -> str:
        """Description of the protocol for reports."""
        batch = "one video" if self.videos_per_batch == 1 else f"{self.videos_per_batch} videos"
        return (
            f"{self.name}: M_J of {_F_WORDS['prob']} > {self.threshold:g}; M_F over 255 thresholds of "
            f"{_F_WORDS[self.f_input]}, maximum of the mean curve of a batch of {batch}; "
            f"at {self.resolution} size"
        )

    @property
    def logit_threshold(self) -> float:
        """Logit of the threshold."""
        return float(np.log(self.threshold / (1 - self.threshold)))


_F_WORDS = {"prob": "probabilities", "logit": "raw logits"}
PROTOCOLS = {
    "avsbench": Protocol("avsbench"),
    # SAMA-AVS's code has no sigmoid before its F-measure
    "sama": Protocol("sama", f_input="logit"),
    # SAMA-AVS validates with two videos per batch
    "sama_val": Protocol("sama_val", f_input="logit", videos_per_batch=2),
    "gavs": Protocol("gavs", threshold=0.4, resolution="native"),
}
AVSBENCH = PROTOCOLS["avsbench"]


def protocol(name: str) -> Protocol:
    """Return a protocol by name. Raises SaveDeployError for an unknown name."""
    check_word("metrics", name, PROTOCOLS)
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Score:
    """Scores of a dataset: means over batches (videos) with 95 % intervals over videos.

    m_j: percent (0 to 100).
    m_f: 0 to 1.
    protocol: description of the protocol.
    """

    m_j: float
    m_f: float
    n_videos: int
    n_frames: int
    m_j_interval: Interval
    m_f_interval: Interval
    protocol: str
    j: tuple[float, ...] = field(repr=False)  # 0..1, one per batch
    f: tuple[float, ...] = field(repr=False)


class ScoreMeter:
    """Accumulates videos and returns their score. Batches of the protocol are filled in order."""

    def __init__(self, protocol: Protocol = AVSBENCH) -> None:
        self.protocol = protocol
        self.j: list[float] = []
        self.f: list[float] = []
        self.n_videos = self.n_frames = 0
        self._frames: list[float] = []  # J of the frames of the current batch
        self._curves: list[NDArray[np.float64]] = []

    def add(self, logits: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
        """Add one video and return its mean J (0 to 1).

        logits: mask_logits (F,H,W).
        truth: bool (F,H,W).
        """
        found = frame_iou(logits > self.protocol.logit_threshold, truth)
        values = sigmoid(logits) if self.protocol.f_input == "prob" else logits
        labeled = truth.reshape(len(truth), -1).any(axis=1)
        self._frames.extend(found)
        self._curves.extend(f_curves(values[labeled].astype(np.float32), truth[labeled]))
        self.n_videos, self.n_frames = self.n_videos + 1, self.n_frames + len(truth)
        if self.n_videos % self.protocol.videos_per_batch == 0:
            self._close()
        return float(found.mean())

    def _close(self) -> None:
        self.j.append(float(np.mean(self._frames)))
        # a batch with only empty truth counts as 0
        self.f.append(float(np.mean(self._curves, axis=0).max()) if self._curves else 0.0)
        self._frames, self._curves = [], []

    def score(self) -> Score:
        """Return the score. Raises SaveDeployError when nothing was added."""
        if self._frames:
            self._close()
        return score_of(self.j, self.f, self.n_videos, self.n_frames, self.protocol)


def score_of(
    j: Iterable[float],
    f: Iterable[float],
    n_videos: int,
    n_frames: int,
    protocol: Protocol = AVSBENCH,
) -> Score:
    """Return the score of per-batch values. Raises SaveDeployError when there are none."""
    j, f = tuple(j), tuple(f)
    if not j:
        raise SaveDeployError("nothing to score", got="no clip", expected="one or more")
    low, high = bootstrap_interval(j)
    return Score(
        m_j=float(100 * np.mean(j)),
        m_f=float(np.mean(f)),
        n_videos=n_videos,
        n_frames=n_frames,
        m_j_interval=(100 * low, 100 * high),
        m_f_interval=bootstrap_interval(f),
        protocol=protocol.text,
        j=j,
        f=f,
    )


def score_videos(
    videos: Iterable[tuple[NDArray[np.floating], NDArray[np.bool_]]],
    protocol: Protocol = AVSBENCH,
) -> Score:
    """Return the score of videos, each mask_logits (F,H,W) and truth bool (F,H,W).

    A logit equal to the threshold is background.
    """
    meter = ScoreMeter(protocol)
    for logits, truth in videos:
        meter.add(logits, truth)
    return meter.score()


def frame_iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return J of each frame, (F,), for mask and truth bool (F,H,W).

    For empty truth J is the share of correct background.
    """
    mask, truth = mask.reshape(len(mask), -1), truth.reshape(len(truth), -1)  # (F,H*W)
    inter = (mask & truth).sum(1).astype(np.float64)
    union = (mask | truth).sum(1).astype(np.float64)
    empty = ~truth.any(axis=1)
    inter[empty] = (~mask[empty]).sum(1)
    union[empty] = truth.shape[1]
    return inter / (union + 1e-7)


def f_curves(values: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return F at the 255 thresholds, (F,H,W) -> (F,255). Values >= threshold are foreground."""
    curves = np.zeros((len(values), THRESHOLDS.size))
    for i, (v, g) in enumerate(zip(values, truth, strict=True)):
        passed = thresholds_passed(v.ravel())  # (H*W,)
        # one histogram for both: background pixels in bins 0..255, foreground in 256..511
        bins = np.bincount(passed + g.ravel().astype(np.int16) * 256, minlength=512)
        background, hits = bins.reshape(2, 256)[:, ::-1].cumsum(1)[:, ::-1][:, 1:].astype(float)
        predicted = background + hits
        precision, recall = hits / (predicted + 1e-20), hits / (bins[256:].sum() + 1e-20)
        with np.errstate(invalid="ignore", divide="ignore"):
            curve = (1 + BETA2) * precision * recall / (BETA2 * precision + recall)
        curves[i] = np.nan_to_num(curve, nan=0.0)
    return curves


def thresholds_passed(values: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return how many of the 255 thresholds each value reaches, 0..255: (n,) -> (n,).

    The thresholds are nearly k/254, so the result is a multiplication, corrected by one step where
    rounding changed it. A binary search takes three times as long.
    """
    guess = (np.clip(values, 0.0, 1.0) * np.float32(_STEPS)).astype(np.int16)  # clip raw logits
    guess += (values >= _NEXT[guess]).astype(np.int16)
    guess -= (values < THRESHOLDS[guess]).astype(np.int16)
    return guess + np.int16(1)


_NEXT = np.append(THRESHOLDS[1:], np.float32(np.inf))  # threshold k + 1, inf after the last


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the logistic function in float32, without overflow."""
    logits = np.clip(logits.astype(np.float32), -80, 80)
    return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
