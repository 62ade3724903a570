"""M_J and M_F exactly as AVSBench computes them, on the CPU and without loops (SPEC 5).

The F-measure takes its maximum over thresholds after averaging the curves of one batch, so it
depends on the batch: here a batch is one video (all its annotated frames), as in AVSBench's test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BATCH_DEFINITION = "one video per batch; M_F: max over 255 thresholds of the batch-mean curve"
THRESHOLDS = np.linspace(0, 1 - 1e-10, 255, dtype=np.float64).astype(np.float32)
BETA2 = 0.3


@dataclass(frozen=True)
class Score:
    """Means over videos, M_J in percent (0..100), M_F in 0..1."""

    m_j: float
    m_f: float
    n_videos: int
    n_frames: int


def frame_iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Per-frame J. mask, truth bool (F,H,W) -> (F,). Empty truth: share of correct background."""
    mask, truth = mask.reshape(len(mask), -1), truth.reshape(len(truth), -1)  # (F,H*W)
    inter = (mask & truth).sum(1).astype(np.float64)
    union = (mask | truth).sum(1).astype(np.float64)
    empty = ~truth.any(axis=1)
    inter[empty] = (~mask[empty]).sum(1)
    union[empty] = truth.shape[1]
    return inter / (union + 1e-7)


def f_curves(prob: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F over the 255 thresholds, prob in [0,1] and truth bool, both (F,H,W) -> (F,255)."""
    curves = np.zeros((len(prob), THRESHOLDS.size))
    for i, (p, g) in enumerate(zip(prob, truth, strict=True)):
        # rank = how many thresholds a pixel passes; counts passing threshold k = sum over rank > k
        rank = np.searchsorted(THRESHOLDS, p.ravel().astype(np.float32), side="right")
        predicted = np.bincount(rank, minlength=256)[::-1].cumsum()[::-1][1:].astype(np.float64)
        hits = (
            np.bincount(rank[g.ravel()], minlength=256)[::-1].cumsum()[::-1][1:].astype(np.float64)
        )
        precision, recall = hits / (predicted + 1e-20), hits / (g.sum() + 1e-20)
        with np.errstate(invalid="ignore", divide="ignore"):
            curve = (1 + BETA2) * precision * recall / (BETA2 * precision + recall)
        curves[i] = np.nan_to_num(curve, nan=0.0)
    return curves


def batch_f(prob: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """M_F of one batch: frames with empty truth are skipped; a batch of only such frames scores 0."""
    labelled = truth.reshape(len(truth), -1).any(axis=1)
    if not labelled.any():
        return 0.0
    return float(f_curves(prob[labelled], truth[labelled]).mean(axis=0).max())


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Logistic function in float32, without overflow."""
    logits = np.clip(logits.astype(np.float32), -80, 80)
    return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)


def score_videos(videos: Iterable[tuple[NDArray[np.floating], NDArray[np.bool_]]]) -> Score:
    """(mask_logits (F,H,W), truth bool (F,H,W)) per video -> means over videos. A logit of 0 is
    background (strict >)."""
    j, f, n_frames = [], [], 0
    for logits, truth in videos:
        j.append(frame_iou(logits > 0, truth).mean())
        f.append(batch_f(sigmoid(logits), truth))
        n_frames += len(truth)
    return Score(
        m_j=float(100 * np.mean(j)), m_f=float(np.mean(f)), n_videos=len(j), n_frames=n_frames
    )
