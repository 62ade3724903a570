"""The three-line interface: instant import, several threads, live sound."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import save_deploy
from save_deploy.data.scenes import Scenes
from save_deploy.errors import DataError
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.stream import Listener, stream
from tests.runtime.films import Ears

HEAVY = (
    "numpy",
    "torch",
    "av",
    "onnxruntime",
    "openvino",
    "PIL",
    "onnx",
    "tensorrt",
    "rich",
    "typer",
)
BACKENDS = ("onnxruntime", "openvino")


def test_import_is_instant_and_load_is_the_pipelines() -> None:
    """Nothing at all is imported before `load` is asked for, and then no torch."""
    code = (
        "import sys, save_deploy\n"
        f"assert not [m for m in {HEAVY} if m in sys.modules], sys.modules\n"
        "sys.modules['torch'] = None\n"
        "from save_deploy import load\n"
        "from save_deploy.runtime import pipeline\n"
        "assert load is pipeline.load is save_deploy.load\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    names = {"Bundle", "Listener", "Result", "SaveDeployError", "compare", "load", "read_frame"}
    names |= {"read_sound", "stream"}
    assert set(save_deploy.__all__) == set(dir(save_deploy)) == names | {"__version__", "export"}
    for name in names:
        assert getattr(save_deploy, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = save_deploy.laod  # type: ignore[attr-defined]


def test_three_lines(bundle: Path) -> None:
    clip = Scenes(n_clips=1)[0]
    with save_deploy.load(bundle) as segment, load(bundle) as same:
        mask = segment(clip.frames[0], clip.waveform)
        assert mask.shape == clip.frames[0].shape[:2] and mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, same(clip.frames[0], clip.waveform))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_share_a_pipeline(bundle: Path, backend: str) -> None:
    """Four threads, fifteen calls each, all on one pipeline: the masks of calls one after the other."""
    clips = list(Scenes(n_clips=2))
    pairs = [(clip.frames[k], clip.waveform[8000 * k :]) for clip in clips for k in range(5)]
    with load(bundle, backend=backend, threads=1) as segment:
        expected = [segment(*pair) for pair in pairs]
        assert len({mask.tobytes() for mask in expected}) > 5, "mixed up masks would be seen"

        def calls(thread: int) -> list[int]:
            chosen = [(7 * thread + 3 * i) % len(pairs) for i in range(15)]
            return [i for i in chosen if not np.array_equal(segment(*pairs[i]), expected[i])]

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(calls, range(4))) == [[], [], [], []]


FRAME = np.full((8, 8, 3), 200, np.uint8)
LOUD, QUIET = np.full(16_000, 0.5, np.float32), np.zeros(16_000, np.float32)


def test_live_sound_is_asked_once_per_second_with_a_frame() -> None:
    asked = []

    def microphone(second: int) -> np.ndarray:
        asked.append(second)
        return LOUD if second % 2 else QUIET

    times = [0.2, 0.7, 1.0, 1.99, 2.1, 5.5, 2.9999999]
    masks = stream(Ears(), ((FRAME, t) for t in times[:-1]), microphone)  # type: ignore[arg-type]
    assert [bool(m.any()) for m in masks] == [False, False, True, True, False, True]
    assert asked == [0, 1, 2, 5]
    listener = Listener(Ears(), microphone)  # type: ignore[arg-type]
    assert not listener(FRAME, 2.4).any() and listener(FRAME, 2.9999999).any()
    assert listener.second == 3 and listener.waveform is LOUD
    clock = Listener(Ears(), microphone)  # type: ignore[arg-type]
    assert clock(FRAME, 1_700_000_001.5).any(), "any clock will do for live sound"


def test_seconds_of_an_iterable_are_taken_in_order() -> None:
    """Those without a frame are passed over; after the last one, silence at once."""
    seconds = iter([LOUD, QUIET, LOUD, LOUD])
    pairs = [(FRAME, t) for t in (0.0, 1.5, 3.0, 3.9, 4.0, 1e9)]
    masks = list(stream(Ears(), pairs, seconds))  # type: ignore[arg-type]
    assert [bool(m.any()) for m in masks] == [True, False, True, True, False, False]


def test_wrong_times_are_named() -> None:
    listener = Listener(Ears(), LOUD)  # type: ignore[arg-type]
    for wrong in (float("nan"), -0.5, float("inf")):
        with pytest.raises(DataError, match="wrong time of a frame"):
            listener(FRAME, wrong)
    listener(FRAME, 3.2)
    listener(FRAME, 3.1)  # within the second heard
    with pytest.raises(DataError, match=r"2\.9 s(.|\n)*3 s or later"):
        listener(FRAME, 2.9)
