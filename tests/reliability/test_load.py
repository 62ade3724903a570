"""A pipeline under load: many calls from many threads, opened often, forked, fed for an hour.

SAVE_CALLS, SAVE_OPENS, SAVE_SECONDS make a run shorter.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import pytest

from save_deploy.data.scenes import Scenes
from save_deploy.runtime.pipeline import Listener, load

pytestmark = pytest.mark.long
CALLS = int(os.environ.get("SAVE_CALLS", "10000"))
OPENS = int(os.environ.get("SAVE_OPENS", "300"))
SECONDS = int(os.environ.get("SAVE_SECONDS", "3600"))
BACKENDS = ("onnxruntime", "openvino")
THREADS, MARGIN_MIB = 8, 60


def _resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def _pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    clips = list(Scenes(n_clips=2))
    return [(clip.frames[k], clip.waveform[8000 * k :]) for clip in clips for k in range(5)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_from_threads_equal_calls_from_one(bundle_fp32: Path, backend: str) -> None:
    pairs = _pairs()
    with load(bundle_fp32, backend=backend, threads=1) as segment:
        expected = [segment(*pair) for pair in pairs]
        assert len({mask.tobytes() for mask in expected}) > 5, "mixed up masks would be seen"

        def calls(thread: int) -> int:
            chosen = [(7 * thread + 3 * i) % len(pairs) for i in range(CALLS // THREADS)]
            return sum(not np.array_equal(segment(*pairs[i]), expected[i]) for i in chosen)

        before = _resident_mib()
        with ThreadPoolExecutor(THREADS) as pool:
            assert sum(pool.map(calls, range(THREADS))) == 0
        grown = _resident_mib() - before
    assert grown < MARGIN_MIB
    print(f"\n{backend}: {CALLS} calls from {THREADS} threads, memory grew by {grown:.0f} MiB")


@pytest.mark.parametrize("backend", BACKENDS)
def test_opened_and_closed_often(bundle_fp32: Path, backend: str) -> None:
    pair = _pairs()[0]
    sizes = []
    for _ in range(OPENS):
        with load(bundle_fp32, backend=backend, threads=1, verify=False) as segment:
            segment(*pair)
        sizes.append(_resident_mib())
    third = len(sizes) // 3
    grown = np.median(sizes[-third:]) - np.median(sizes[third : 2 * third])
    assert grown < MARGIN_MIB
    n_files = psutil.Process().num_fds()
    assert n_files < 200
    print(
        f"\n{backend}: {OPENS} times opened, memory grew by {grown:.0f} MiB in the last two thirds"
    )


def test_fork_after_load(bundle_fp32: Path) -> None:
    """A forked child that opens its own pipeline answers like its parent."""
    pair = _pairs()[0]
    with load(bundle_fp32, backend="onnxruntime", threads=1) as segment:
        expected = segment(*pair)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with load(bundle_fp32, backend="onnxruntime", threads=1) as own:
                    code = 0 if np.array_equal(own(*pair), expected) else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert np.array_equal(segment(*pair), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_is_flat_over_an_hour_of_film(bundle_fp32: Path, backend: str) -> None:
    """A looped film of 5 frames a second through a Listener."""
    pairs, sizes = cycle(_pairs()), []
    with load(bundle_fp32, backend=backend, threads=1) as segment:
        heard = Listener(segment, lambda second: next(pairs)[1][:16_000])
        for second in range(SECONDS):
            for k in range(5):
                heard(next(pairs)[0], second + k / 5)
            if second % max(1, SECONDS // 60) == 0:
                sizes.append(_resident_mib())
    third = len(sizes) // 3
    grown = np.median(sizes[-third:]) - np.median(sizes[third : 2 * third])
    assert grown < MARGIN_MIB / 3
    print(
        f"\n{backend}: {SECONDS} s of film, memory grew by {grown:.1f} MiB in the last two thirds"
    )
