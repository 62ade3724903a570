"""What a mask can do beside being an array: outlines, run lengths, score, drawing, files, threshold."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from save_deploy.errors import DataError
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.pipeline import Listener, SavePipeline, stream
from save_deploy.runtime.result import Result, polygons_of, rle_of
from save_deploy.runtime.video.overlay import outlined
from tests.conftest import make_tiny

rng = np.random.default_rng(0)
FRAME = rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)
SOUND = (0.2 * np.sin(np.arange(16_000))).astype(np.float32)


def filled(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """By the even-odd rule, asked at the center of every pixel."""
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    odd = np.zeros(shape, bool)
    for ring in rings:
        for (x0, y0), (_, y1) in pairwise([*ring.tolist(), ring[0].tolist()]):
            odd ^= (ys > min(y0, y1)) & (ys < max(y0, y1)) & (xs < x0)  # edges are upright or level
    return odd


def area(ring: np.ndarray) -> float:
    """Positive for a ring clockwise on the screen, where y points down."""
    x, y = ring.T.astype(float)
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def random_masks(n: int) -> list[np.ndarray]:
    return [rng.random(rng.integers(1, 9, 2)) < rng.random() for _ in range(n)]


def test_polygons_are_the_mask() -> None:
    """Filled they are the mask, holes are negative, no corner is without a turn."""
    for mask in [*random_masks(200), np.zeros((3, 4), bool), np.ones((3, 4), bool)]:
        rings = polygons_of(mask)
        np.testing.assert_array_equal(filled(rings, mask.shape), mask)
        assert sum(area(ring) for ring in rings) == mask.sum()
        for ring in rings:
            edges = np.roll(ring, -1, axis=0) - ring
            assert ((edges == 0).sum(axis=1) == 1).all()
            assert ((edges * np.roll(edges, -1, axis=0)).sum(axis=1) == 0).all()
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:4] = False
    assert sorted(area(r) for r in polygons_of(ring)) == [-9, 25]
    assert not np.array_equal(filled(polygons_of(ring)[:1], ring.shape), ring), "the twin: no hole"


def test_run_lengths_are_those_of_coco() -> None:
    mask = np.array([[0, 1], [0, 1], [1, 0]], bool)
    assert rle_of(mask) == {"size": [3, 2], "counts": [2, 3, 1]}  # 0 0 1, 1 1 0 by columns
    assert rle_of(np.ones((2, 2), bool))["counts"] == [0, 4]
    assert rle_of(np.zeros((2, 2), bool))["counts"] == [4]
    for mask in random_masks(50):
        counts = rle_of(mask)["counts"]
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        np.testing.assert_array_equal(flat.reshape(mask.shape, order="F"), mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_lengths_are_read_by_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="pip install pycocotools")
    for mask in random_masks(20):
        packed = coco.frPyObjects(rle_of(mask), *mask.shape)
        np.testing.assert_array_equal(coco.decode(packed).astype(bool), mask)


@pytest.fixture(scope="module")
def segment() -> SavePipeline:
    return eager_pipeline(make_tiny())


@pytest.fixture(scope="module")
def result(segment: SavePipeline) -> Result:
    found = segment(FRAME, SOUND)
    assert 0 < found.share < 1
    return found


def test_a_result_is_the_array_of_before(segment: SavePipeline, result: Result) -> None:
    """Also for libraries that ask whether it is an array; what is computed from it is a plain one."""
    plain = np.asarray(result)
    assert isinstance(result, np.ndarray) and type(plain) is np.ndarray
    assert result.dtype == np.bool_ and result.shape == (48, 80)
    for made in (~result, result & result, np.where(result, 1, 0), np.stack([result, result])):
        assert type(made) is np.ndarray
    assert result.mean() == plain.mean() and result.sum() == plain.sum() and bool(result.any())
    np.testing.assert_array_equal(torch.from_numpy(result).numpy(), plain)
    np.testing.assert_array_equal(np.asarray(Image.fromarray(result)), plain)
    np.testing.assert_array_equal(next(stream(segment, [FRAME], SOUND, frames_per_s=1)), plain)
    np.testing.assert_array_equal(Listener(segment, SOUND)(FRAME, 0), plain)
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again.logits, result.logits)
    assert again.threshold == 0.5 and np.array_equal(copy.deepcopy(result), plain)


def test_logits_and_score(segment: SavePipeline, result: Result) -> None:
    logits = segment.logits(FRAME, segment.embed(SOUND))
    np.testing.assert_array_equal(result.logits, logits)
    probability = torch.sigmoid(torch.from_numpy(logits)).double().numpy()
    assert result.score == pytest.approx(probability[logits > 0].mean(), abs=1e-6)
    assert Result(np.zeros((2, 2), bool), np.full((4, 4), -3, np.float32)).score == 0
    assert repr(result).startswith("<mask 80 x 48: ") and f"score {result.score:.2f}" in repr(
        result
    )
    part = result[:9, :9]
    assert part.box() is None or len(part.polygons()) > 0
    with pytest.raises(DataError, match="part of a mask has no logits"):
        _ = part.logits


def test_box_is_what_pillow_crops() -> None:
    mask = np.zeros((7, 9), bool)
    assert Result(mask).box() is None
    mask[2:5, 3:8] = True
    box = Result(mask).box()
    assert box == (3, 2, 8, 5)
    assert np.asarray(Image.fromarray(mask).crop(box)).all()


def test_overlay_is_that_of_films(result: Result) -> None:
    np.testing.assert_array_equal(result.overlay(FRAME), outlined(FRAME, np.asarray(result)))
    np.testing.assert_array_equal(result.overlay(Image.fromarray(FRAME)), result.overlay(FRAME))
    assert not np.array_equal(result.overlay(FRAME, "red"), result.overlay(FRAME))
    with pytest.raises(DataError, match=r"another size(.|\n)*79 x 48(.|\n)*80 x 48"):
        result.overlay(FRAME[:, :-1])


def test_saved_as_picture_and_as_json(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "m.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")) > 0, result)
    result.save(str(tmp_path / "m.json"))
    values = json.loads((tmp_path / "m.json").read_text())
    assert values["rle"] == result.rle() and values["box"] == list(result.box() or ())
    rings = [np.array(ring) for ring in values["polygons"]]
    np.testing.assert_array_equal(filled(rings, (48, 80)), result)
    with pytest.raises(DataError, match="cannot be written"):
        result.save(tmp_path / "m.nonsense")


@pytest.mark.parametrize("threshold", [0.1, 0.9])
def test_threshold_is_a_probability(result: Result, threshold: float) -> None:
    model = make_tiny()
    pipeline = eager_pipeline(model)
    pipeline.threshold = threshold
    found = pipeline(FRAME, SOUND)
    at_size = Image.fromarray(found.logits).resize((80, 48), Image.Resampling.BILINEAR)
    probability = torch.sigmoid(torch.from_numpy(np.array(at_size)).double()).numpy()
    decided = np.abs(probability - threshold) > 1e-6
    np.testing.assert_array_equal(found[decided], (probability > threshold)[decided])
    assert (found.share < result.share) == (threshold > 0.5) and found.threshold == threshold


@pytest.mark.parametrize("threshold", [0, 1, -1, 2, float("nan"), "half", None])
def test_thresholds_that_are_refused(threshold: float) -> None:
    with pytest.raises(DataError, match="wrong threshold"):
        SavePipeline(config=None, precision="", audio=None, model=None, threshold=threshold)  # type: ignore[arg-type]


def test_sound_of_another_rate(segment: SavePipeline) -> None:
    """Resampled and mixed as that of a file; one second at a usual rate without its rate is no mask."""
    t = np.arange(48_000) / 48_000
    at_48 = (0.2 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    at_16 = (0.2 * np.sin(2 * np.pi * 440 * t[::3])).astype(np.float32)
    heard = segment.embed(at_48, 48_000)
    np.testing.assert_allclose(heard, segment.embed(at_16), atol=0.05 * np.abs(heard).max())
    stereo = np.stack([2 * at_48, np.zeros_like(at_48)], axis=1)
    for given in (stereo, stereo.T, stereo.tolist()):
        np.testing.assert_allclose(segment.embed(given, 48_000), heard, atol=1e-4)
    mask = segment(FRAME, at_48, rate=48_000)
    np.testing.assert_array_equal(Listener(segment, at_48, rate=48_000)(FRAME, 0.5), mask)
    np.testing.assert_array_equal(Listener(segment, [stereo], rate=48_000)(FRAME, 0.5), mask)
    np.testing.assert_array_equal(segment(FRAME, at_16, rate=16_000), segment(FRAME, at_16))
    for n in (11_025, 22_050, 44_100, 88_200):
        with pytest.raises(DataError, match=rf"another rate(.|\n)*rate={n}"):
            segment(FRAME, np.zeros(n, np.float32))
        segment(FRAME, np.zeros(n, np.float32), rate=n)
    with pytest.warns(UserWarning, match="rate=48000 if they are one second"):
        segment(FRAME, np.zeros(48_000, np.float32))
    for rate, text in (
        (0, "out of range"),
        (44_100.5, "wrong sample rate"),
        ("44100", "wrong sample"),
    ):
        with pytest.raises(DataError, match=text):
            segment.embed(at_16, rate)  # type: ignore[arg-type]


def test_paths_are_read(segment: SavePipeline, tmp_path: Path) -> None:
    import soundfile

    Image.fromarray(FRAME).save(tmp_path / "f.png")
    soundfile.write(tmp_path / "s.wav", SOUND, 16_000, subtype="FLOAT")
    expected = segment(FRAME, SOUND)
    np.testing.assert_array_equal(segment(tmp_path / "f.png", str(tmp_path / "s.wav")), expected)
    found = Listener(segment, tmp_path / "s.wav")(str(tmp_path / "f.png"), 0)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError, match="image not found"):
        segment(tmp_path / "none.png", SOUND)
    with pytest.raises(DataError, match="sound file not found"):
        segment(FRAME, "none.wav")
    for wrong in ("", "a\0b", b"f.png"):
        with pytest.raises(DataError):
            segment(wrong, SOUND)
