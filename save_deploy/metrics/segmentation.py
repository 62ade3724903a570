"""M_J and M_F exactly as AVSBench computes them, on the CPU and without loops over thresholds (SPEC 5).

The F-measure takes its maximum over thresholds after averaging the curves of one batch, so it
depends on the batch: a protocol fixes it, and every score carries its protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import SaveDeployError
from save_deploy.metrics.interval import Interval, bootstrap_interval

THRESHOLDS = np.linspace(0, 1 - 1e-10, 255, dtype=np.float64).astype(np.float32)
_STEPS = THRESHOLDS.size - 1
BETA2 = 0.3


@dataclass(frozen=True)
class Protocol:
    """How masks are scored. threshold: of the probability, strictly above is foreground (M_J).
    f_input: what the 255 thresholds 0..1 of M_F cut, probabilities or raw logits. videos_per_batch:
    whose curves are averaged before the maximum. resolution: input (network size, truth enlarged
    by nearest) or native (logits enlarged to the frame)."""

    name: str
    threshold: float = 0.5
    f_input: str = "prob"
    videos_per_batch: int = 1
    resolution: str = "input"

    @property
    def text(self) -> str:
        batch = "one video" if self.videos_per_batch == 1 else f"{self.videos_per_batch} videos"
        return (
            f"{self.name}: M_J of {_F_WORDS['prob']} > {self.threshold:g}; M_F over 255 thresholds of "
            f"{_F_WORDS[self.f_input]}, maximum of the mean curve of a batch of {batch}; "
            f"at {self.resolution} size"
        )

    @property
    def logit_threshold(self) -> float:
        return float(np.log(self.threshold / (1 - self.threshold)))


_F_WORDS = {"prob": "probabilities", "logit": "raw logits"}
PROTOCOLS = {
    "avsbench": Protocol("avsbench"),
    # SAMA-AVS comments the sigmoid out before its F-measure
    "sama": Protocol("sama", f_input="logit"),
    # and validates with two videos a batch
    "sama_val": Protocol("sama_val", f_input="logit", videos_per_batch=2),
    "gavs": Protocol("gavs", threshold=0.4, resolution="native"),
}
AVSBENCH = PROTOCOLS["avsbench"]


def protocol(name: str) -> Protocol:
    """Raises SaveDeployError for an unknown name."""
    if name not in PROTOCOLS:
        raise SaveDeployError("unknown metrics", got=name, expected=", ".join(PROTOCOLS))
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Score:
    """Means over batches (videos), M_J in percent (0..100), M_F in 0..1, with 95 % intervals over
    videos; the values they come from, and the protocol in words."""

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
    """Collects videos and gives their score; batches of the protocol are filled in order."""

    def __init__(self, protocol: Protocol = AVSBENCH) -> None:
        self.protocol = protocol
        self.j: list[float] = []
        self.f: list[float] = []
        self.n_videos = self.n_frames = 0
        self._frames: list[float] = []  # J of the frames of the open batch
        self._curves: list[NDArray[np.float64]] = []

    def add(self, logits: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
        """mask_logits (F,H,W), truth bool (F,H,W) of one video -> its own mean J (0..1)."""
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
        # a batch of empty truth only counts as 0
        self.f.append(float(np.mean(self._curves, axis=0).max()) if self._curves else 0.0)
        self._frames, self._curves = [], []

    def score(self) -> Score:
        """Raises SaveDeployError when nothing was added."""
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
    """Score of per-batch values, wherever they were computed."""
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
    """(mask_logits (F,H,W), truth bool (F,H,W)) per video -> score. A logit on the threshold is
    background."""
    meter = ScoreMeter(protocol)
    for logits, truth in videos:
        meter.add(logits, truth)
    return meter.score()


def frame_iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Per-frame J. mask, truth bool (F,H,W) -> (F,). Empty truth: share of correct background."""
    mask, truth = mask.reshape(len(mask), -1), truth.reshape(len(truth), -1)  # (F,H*W)
    inter = (mask & truth).sum(1).astype(np.float64)
    union = (mask | truth).sum(1).astype(np.float64)
    empty = ~truth.any(axis=1)
    inter[empty] = (~mask[empty]).sum(1)
    union[empty] = truth.shape[1]
    return inter / (union + 1e-7)


def f_curves(values: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F over the 255 thresholds, values >= threshold are foreground; both (F,H,W) -> (F,255)."""
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
    """How many of the 255 thresholds each value reaches, 0..255: (n,) -> (n,).

    The thresholds are nearly k/254, so the answer is a multiplication, put right by one step where
    rounding moved it; a binary search takes three times as long.
    """
    guess = (np.clip(values, 0.0, 1.0) * np.float32(_STEPS)).astype(np.int16)  # logits too
    guess += (values >= _NEXT[guess]).astype(np.int16)
    guess -= (values < THRESHOLDS[guess]).astype(np.int16)
    return guess + np.int16(1)


_NEXT = np.append(THRESHOLDS[1:], np.float32(np.inf))  # threshold k + 1, none after the last


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Logistic function in float32, without overflow."""
    logits = np.clip(logits.astype(np.float32), -80, 80)
    return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
