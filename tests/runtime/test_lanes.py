"""Frames at the same time: the same masks in the same order, errors where they belong, nothing left."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.errors import BackendError, DataError, ParityError
from save_deploy.runtime import lanes as lanes_module
from save_deploy.runtime.lanes import Lanes, as_lanes, faster_lanes, open_lanes
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.session import available_backends
from save_deploy.runtime.video.options import RunOptions
from save_deploy.runtime.video.run import VideoRun
from tests.runtime.films import Ears, left_in, masks_in, run, tone, write_film


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path / "film.mp4", sound=tone(3, (0, 1)))


class Uneven(Ears):
    """Every other call takes longer, so that calls end in another order than they began."""

    fails_at, calls, most, running = -1, 0, 0, 0

    def run(self, images: np.ndarray, heard: np.ndarray) -> np.ndarray:
        kind = type(self)
        k, kind.calls, kind.running = kind.calls, kind.calls + 1, kind.running + 1
        kind.most = max(kind.most, kind.running)
        time.sleep(0.02 if k % 2 else 0.002)
        kind.running -= 1
        if k == kind.fails_at:
            raise DataError("on purpose")
        return super().run(images, heard)


def uneven(n: int, fails_at: int = -1) -> Lanes:
    Uneven.calls = Uneven.most = Uneven.running = 0
    Uneven.fails_at = fails_at
    return Lanes([Uneven() for _ in range(n)])


def of_films() -> set[threading.Thread]:
    return set(threading.enumerate())


def test_order_is_kept(film: Path, tmp_path: Path) -> None:
    run(film, masks=tmp_path / "one")
    with uneven(3) as lanes:
        run(film, lanes, masks=tmp_path / "three")
    assert Uneven.calls == 30 and Uneven.most == 3
    one, three = masks_in(tmp_path / "one"), masks_in(tmp_path / "three")
    assert len({mask.tobytes() for mask in one}) > 15, "frames differ"
    assert all(map(np.array_equal, one, three))


@pytest.mark.parametrize("ends", ["error", "interrupt"])
def test_ends_cleanly(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """After an error or Ctrl-C in the middle no file, no call and no thread of the film is left."""
    before = of_films()
    options = RunOptions(video=film, masks=tmp_path / "m", out=tmp_path / "o.mp4")
    with uneven(2, fails_at=12 if ends == "error" else -1) as lanes:
        if ends == "error":
            with pytest.raises(DataError, match="on purpose"):
                VideoRun(options)(lanes)
        else:
            seen: list[int] = []

            def each() -> None:
                seen.append(1)
                if len(seen) == 9:
                    monkeypatch.setattr("save_deploy.progress._interrupted", True)

            with pytest.raises(KeyboardInterrupt):
                VideoRun(options)(lanes, on_frame=each)
            assert len(seen) == 9
        assert Uneven.running == 0 and Uneven.calls < 30
        calls = Uneven.calls
        time.sleep(0.05)
        assert Uneven.calls == calls
        assert len(of_films() - before) <= 2  # of the lanes
    assert left_in(tmp_path) == {"film.mp4"}
    assert of_films() <= before


def test_logits_that_are_not_finite(film: Path, tmp_path: Path) -> None:
    class Broken(Ears):
        def run(self, images: np.ndarray, heard: np.ndarray) -> np.ndarray:
            return super().run(images, heard) * np.float32("nan")

    with pytest.raises(ParityError):
        run(film, Broken(), masks=tmp_path / "m")
    assert left_in(tmp_path) == {"film.mp4"}


@pytest.mark.parametrize("backend", available_backends())
def test_twins_share_weights_and_answer_alike(bundle_fp32: Path, backend: str) -> None:
    """Two streams: bit for bit the logits of one, at the same time from two threads."""
    rng = np.random.default_rng(0)

    def loaded(threads: int | None, streams: int) -> Any:
        return load(bundle_fp32, backend=backend, threads=threads, streams=streams)

    with load(bundle_fp32, backend=backend, threads=2) as plain, open_lanes(loaded, 2, 2) as lanes:
        side = plain.config.res
        images = rng.integers(0, 256, (6, 1, side, side, 3), np.uint8)
        heard = rng.normal(size=(6, 1, 128)).astype(np.float32)
        answers = [lanes.submit(*pair) for pair in zip(images, heard, strict=True)]
        for answer, image, sound in zip(answers, images, heard, strict=True):
            np.testing.assert_array_equal(answer.result()[0], plain.run(image, sound))
        assert lanes.how == "2 frames at a time, 1 thread each"
        first, twin = lanes.pipelines
        inner = {"onnxruntime": "_session", "openvino": "_model"}[backend]
        assert getattr(first.model, inner) is getattr(twin.model, inner), "one copy of weights"
        assert first.model.buffers["mask_logits"] is not twin.model.buffers["mask_logits"]  # type: ignore[attr-defined]
        twin.close()
        first.run(images[0], heard[0])
        with pytest.raises(BackendError, match="closed"):
            twin.run(images[0], heard[0])


def test_the_faster_way_is_kept(
    bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Measured once for many frames, read the next time; for few frames nothing is measured."""
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr(lanes_module, "allowed_cores", lambda: 2)
    opened: list[int] = []
    rates, measured, others = {1: 10.0, 2: 13.0}, [], False
    of_load = "onnxruntime"

    def loaded(threads: int | None, streams: int) -> Any:
        opened.append(streams)
        return load(bundle_fp32, backend=of_load, threads=threads, streams=streams)

    def measure(ways: Any, threads: int | None) -> tuple[dict[int, float], bool]:
        measured.append([lanes.n for lanes in ways])
        return rates, others

    monkeypatch.setattr(lanes_module, "_measured", measure)

    def found(threads: int = 2, frames: int | None = None) -> tuple[int, str]:
        opened.clear()
        with faster_lanes(loaded, bundle_fp32, "auto", threads, frames=frames) as lanes:
            return lanes.n, lanes.how

    assert found(frames=lanes_module.FEWEST_FRAMES - 1)[0] == 1 and not measured
    n, how = found()
    assert n == 2 and measured == [[1, 2]] and opened == [1, 2]
    assert how.endswith(
        "(measured: 10.0 frames/s with 1 at a time, 13.0 frames/s with 2 at a time)"
    )
    n, how = found(frames=5)
    assert (n, opened, len(measured)) == (2, [2], 1) and "measured before" in how
    rates = {1: 13.0, 2: 10.0}
    (kept,) = (tmp_path / "lanes").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])  # damaged: measured again
    others = True  # used the cores meanwhile: nothing is kept
    assert found()[1].endswith("with 2 at a time, beside other processes)") and len(measured) == 2
    others = False
    assert found()[0] == 1 and len(measured) == 3
    if "openvino" in available_backends():
        of_load, rates = "openvino", {1: 10.0, 2: 13.0}  # what auto chooses may change
        assert found()[0] == 2 and len(measured) == 4
        of_load = "onnxruntime"
    measured.clear()
    assert found(threads=1) == (1, "1 frame at a time, 1 thread each") and not measured
    monkeypatch.setattr(lanes_module, "available_bytes", lambda: 1000)
    assert found()[0] == 1 and not measured, "no room for two"


@pytest.mark.slow
def test_a_measurement_counts_frames() -> None:
    class Slow(Ears):
        def run(self, images: np.ndarray, heard: np.ndarray) -> np.ndarray:
            time.sleep(0.01)
            return np.zeros((len(images), 256, 256), np.float32)

    with Lanes([Slow()]) as one, Lanes([Slow(), Slow(), Slow()]) as three:
        rates, _ = lanes_module._measured([one, three], None)
    assert set(rates) == {1, 3} and 0 < rates[1] < rates[3] <= 300
    assert json.loads(json.dumps(rates)) == {"1": rates[1], "3": rates[3]}


def test_as_lanes_leaves_open_what_is_given() -> None:
    ears = Ears()
    closed: list[int] = []
    ears.close = lambda: closed.append(1)  # type: ignore[method-assign]
    with as_lanes(ears) as lanes:  # type: ignore[arg-type]
        assert lanes.n == 1 and lanes.first is ears
    assert not closed
    with lanes, pytest.raises(RuntimeError):
        lanes.submit(np.zeros((1, 256, 256, 3), np.uint8), np.zeros((1, 128), np.float32))
    assert closed == [1]
