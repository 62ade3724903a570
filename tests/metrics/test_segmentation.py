"""SPEC 5's worked example to 1e-6."""

from __future__ import annotations

import numpy as np
import pytest

from save_deploy.errors import SaveDeployError
from save_deploy.metrics.interval import bootstrap_interval
from save_deploy.metrics.segmentation import (
    PROTOCOLS,
    THRESHOLDS,
    f_curves,
    frame_iou,
    protocol,
    score_videos,
    sigmoid,
    thresholds_passed,
)

P1 = np.array([[0.9, 0.4], [0.6, 0.1]], np.float32)
P2 = np.array([[0.3, 0.8], [0.2, 0.1]], np.float32)
G1 = np.array([[1, 1], [0, 0]], bool)
G2 = np.array([[1, 0], [0, 0]], bool)
EMPTY = np.zeros((2, 2), bool)


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


def test_m_j() -> None:
    masks = np.stack([P1 > 0.5, P2 > 0.5, P1 > 0.5, np.zeros((2, 2), bool)])
    truth = np.stack([G1, G2, EMPTY, EMPTY])
    got = frame_iou(masks, truth)
    np.testing.assert_allclose(got, [1 / 3, 0, 0.5, 1.0], atol=1e-6)
    assert got.mean() == pytest.approx(0.458333, abs=1e-6)


def test_thresholds() -> None:
    assert THRESHOLDS.size == 255 and THRESHOLDS[-1] == 1.0
    np.testing.assert_allclose(THRESHOLDS, np.arange(255) / 254, atol=1e-7)


def test_f_curve_levels() -> None:
    curve = f_curves(P1[None], G1[None])[0]
    for t, value in [(0.05, 0.565217), (0.3, 0.722222), (0.5, 0.5), (0.8, 0.8125), (0.95, 0.0)]:
        assert curve[round(t * 254)] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([(P1, G1)], 0.8125),
        ([(P2, G2)], 0.565217),
        ([(P1, G1), (P2, G2)], 0.643720),
        ([(P1, EMPTY)], 0.0),
        ([(P1, EMPTY), (P1, G1)], 0.8125),
    ],
)
def test_m_f_of_a_batch(frames: list, expected: float) -> None:
    prob, truth = (np.stack(part) for part in zip(*frames, strict=True))
    assert score_videos([(logit(prob), truth)]).m_f == pytest.approx(expected, abs=1e-6)


def test_m_f_depends_on_the_batch() -> None:
    """Two one-frame videos 0.688859, one two-frame video 0.643720."""
    a, b = (logit(P1)[None], G1[None]), (logit(P2)[None], G2[None])
    assert score_videos([a, b]).m_f == pytest.approx(0.688859, abs=1e-5)
    joined = (np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]))
    assert score_videos([joined]).m_f == pytest.approx(0.643720, abs=1e-5)


def test_scores_are_avsbenchs() -> None:
    """Three videos of five frames, one frame and one whole video without an object: what AVSBench's
    mask_iou and Eval_Fmeasure gave for each."""
    i = np.arange(3 * 5 * 144, dtype=np.float64)
    logits = (3 * np.sin(0.9 * i**1.3)).astype(np.float32).reshape(3, 5, 12, 12)
    truth = (np.sin(0.9 * i**1.3) + np.sin(0.31 * i) > 0.4).reshape(3, 5, 12, 12)
    truth[1, 2], truth[2] = False, False
    for video, m_j, m_f in zip(
        range(3), (0.518512, 0.500140, 0.490278), (0.665991, 0.652575, 0.0), strict=True
    ):
        score = score_videos([(logits[video], truth[video])])
        assert (score.m_j / 100, score.m_f) == pytest.approx((m_j, m_f), abs=1e-5)


def test_curve_equals_the_loop() -> None:
    """The histogram form against AVSBench's definition, threshold by threshold."""
    rng = np.random.default_rng(0)
    prob = rng.random((1, 16, 16), dtype=np.float32)
    prob[0, 0, :4] = [0.0, 1.0, THRESHOLDS[7], THRESHOLDS[200]]
    truth = rng.random((1, 16, 16)) > 0.6
    expected = []
    for t in THRESHOLDS:
        y = prob[0] >= t
        hits = (y & truth[0]).sum()
        precision, recall = hits / (y.sum() + 1e-20), hits / (truth[0].sum() + 1e-20)
        total = 0.3 * precision + recall
        expected.append(1.3 * precision * recall / total if total else 0.0)
    np.testing.assert_allclose(f_curves(prob, truth)[0], expected, atol=1e-12)


def test_logit_zero_is_background() -> None:
    zero = np.zeros((1, 2, 2), np.float32)
    assert score_videos([(zero, np.zeros((1, 2, 2), bool))]).m_j == pytest.approx(100, abs=1e-4)


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1], atol=1e-7)


def test_ranks_equal_a_binary_search() -> None:
    """Every threshold, its neighbors in float32, logits far outside 0..1."""
    rng = np.random.default_rng(0)
    low, high = np.float32(-9), np.float32(9)
    values = np.concatenate(
        [
            THRESHOLDS,
            np.nextafter(THRESHOLDS, low),
            np.nextafter(THRESHOLDS, high),
            rng.normal(0, 5, 10_000).astype(np.float32),
            np.array([-1e9, -0.5, -0.0, 1.5, 1e9], np.float32),
        ]
    )
    expected = np.searchsorted(THRESHOLDS, values, side="right")
    np.testing.assert_array_equal(thresholds_passed(values), expected)


def test_logit_variant() -> None:
    """SAMA-AVS cuts raw logits: f1 0.8125, f2 0.0, both in one batch 0.40625 (SPEC 5)."""
    a, b = (logit(P1)[None], G1[None]), (logit(P2)[None], G2[None])
    sama = PROTOCOLS["sama"]
    assert score_videos([a], sama).m_f == pytest.approx(0.8125, abs=1e-6)
    assert score_videos([b], sama).m_f == pytest.approx(0.0, abs=1e-6)
    assert score_videos([a, b], PROTOCOLS["sama_val"]).m_f == pytest.approx(0.40625, abs=1e-6)


def test_batches_of_two_videos() -> None:
    """An odd last video is a batch of its own; J averages over frames, then batches."""
    videos = [(logit(P1)[None], G1[None]), (logit(P2)[None], G2[None])] * 2
    found = score_videos(videos[:3], PROTOCOLS["sama_val"])
    assert found.j == pytest.approx((1 / 6, 1 / 3), abs=1e-6)
    assert (found.n_videos, len(found.f)) == (3, 2)


def test_gavs_threshold() -> None:
    """0.4 strictly: p 0.41 is foreground, p 0.4 is not."""
    video = (logit(np.array([[[0.41, 0.39]]], np.float32)), np.array([[[True, False]]]))
    assert score_videos([video], PROTOCOLS["gavs"]).m_j == pytest.approx(100, abs=1e-4)
    assert score_videos([video]).m_j == pytest.approx(0, abs=1e-4)
    assert "0.4" in PROTOCOLS["gavs"].text and "one video" in PROTOCOLS["avsbench"].text
    with pytest.raises(SaveDeployError, match="avsbench, sama"):
        protocol("miou")


def test_score_carries_protocol_and_interval() -> None:
    rng = np.random.default_rng(1)
    videos = [(rng.normal(0, 1, (2, 8, 8)), rng.random((2, 8, 8)) > 0.5) for _ in range(30)]
    found = score_videos(videos)
    assert found.m_j_interval[0] < found.m_j < found.m_j_interval[1]
    assert found.protocol == PROTOCOLS["avsbench"].text
    assert np.mean(found.j) * 100 == pytest.approx(found.m_j)
    with pytest.raises(SaveDeployError, match="nothing to score"):
        score_videos([])


def test_bootstrap_against_the_normal_theory() -> None:
    """For many draws of a normal, the interval is mean +- 1.96 sd / sqrt(n)."""
    data = np.random.default_rng(0).normal(0.7, 0.1, 400)
    low, high = bootstrap_interval(list(data))
    half = 1.96 * data.std() / 20
    assert low == pytest.approx(data.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(data.mean() + half, abs=0.15 * half)
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    assert bootstrap_interval(list(data)) == (low, high)
