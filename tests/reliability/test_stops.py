"""Every long verb stopped at random moments: nothing half at the target, and the next call works.

SAVE_TIMES: stops of each kind, 20 unless set.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import pytest

from save_deploy.bundle import Manifest
from save_deploy.calibration.table import CalibrationTable
from save_deploy.checkpoints.inspect import inspect_checkpoint
from tests.runtime import films

pytestmark = pytest.mark.long
TIMES = int(os.environ.get("SAVE_TIMES", "20"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# by the signal itself where Python had not yet begun to listen
STOPPED = {0, 130, *(-sent for sent in SIGNALS)}


@dataclass(frozen=True)
class Verb:
    """target: what it writes, in the current folder; check(target) raises when that is not whole;
    keeps: what it may leave beside the target, to resume from."""

    args: tuple[str, ...]
    target: str
    check: Callable[[Path], object]
    keeps: bool = False


def _check_bundle(folder: Path) -> None:
    Manifest.read(folder).verify(folder)


def _check_film(path: Path) -> None:
    with av.open(str(path)) as film:
        assert sum(1 for _ in film.decode(video=0)) == N_FRAMES


def _check_record(path: Path) -> None:
    seconds = json.loads(path.read_text())["seconds"]
    assert sum(len(second["frames"]) for second in seconds) == N_FRAMES


def _check_run(folder: Path) -> None:
    for path in folder.glob("best*.safetensors"):
        inspect_checkpoint(path)


N_FRAMES = 80


@pytest.fixture(scope="module")
def place(
    tiny_checkpoint: Path, bundle_fp32: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    films.write_film(
        folder / "film.mp4", seconds=N_FRAMES / 10, sound=films.tone(N_FRAMES / 10, (0, 2, 5))
    )
    (folder / "bundle").symlink_to(bundle_fp32)
    (folder / "tiny.safetensors").symlink_to(tiny_checkpoint)
    return folder


VERBS = {
    "run": Verb(
        ("run", "bundle", "film.mp4", "-o", "out.mp4", "--threads", "1"), "out.mp4", _check_film
    ),
    "record": Verb(
        ("run", "bundle", "film.mp4", "--json", "out.json", "--threads", "1"),
        "out.json",
        _check_record,
    ),
    "export": Verb(
        ("export", "tiny.safetensors", "--res", "224", "--golden", "2", "--rounds", "3", "-o", "out",
         "--threads", "1"),
        "out",
        _check_bundle,
    ),
    "calibrate": Verb(
        ("calibrate", "tiny.safetensors", "--res", "224", "--calib-pairs", "32", "-o", "t.json"),
        "t.json",
        CalibrationTable.read,
    ),
    "train": Verb(
        ("train", "--init", "tiny.safetensors", "--res", "224", "--batch", "1", "--steps", "4",
         "--out", "out"),
        "out",
        _check_run,
        keeps=True,
    ),
}  # fmt: skip


def _whole(verb: Verb, folder: Path) -> None:
    """A call that nobody stops."""
    process = _start(verb, folder)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told.decode()
    verb.check(folder / verb.target)


def _start(verb: Verb, folder: Path) -> subprocess.Popen[bytes]:
    resume = ["--resume"] if verb.keeps and (folder / verb.target / "last.pt").exists() else []
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "save_deploy", *verb.args, *resume], cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "SAVE_DEPLOY_CACHE": str(folder / "cache")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_s(place: Path) -> Iterator[Callable[[str], float]]:
    """Seconds that a verb takes when nobody stops it."""
    known: dict[str, float] = {}

    def measure(name: str) -> float:
        if name not in known:
            begun = time.monotonic()
            _whole(VERBS[name], place)
            known[name] = time.monotonic() - begun
            _remove(place / VERBS[name].target)
        return known[name]

    yield measure


@pytest.mark.parametrize("sent", SIGNALS, ids=lambda s: s.name)
@pytest.mark.parametrize("name", VERBS)
def test_stopped_at_random_moments(
    name: str, sent: signal.Signals, place: Path, whole_s: Callable[[str], float]
) -> None:
    verb, moments = VERBS[name], random.Random(f"{name} {sent}")
    target, finished = place / verb.target, 0
    length_s = whole_s(name)
    before = {*place.iterdir()}
    for _ in range(TIMES):
        process = _start(verb, place)
        time.sleep(moments.uniform(0.05, 1.0) * length_s)
        process.send_signal(sent)
        _, told = process.communicate(timeout=120)
        assert process.returncode in STOPPED, told.decode()
        if target.exists():
            verb.check(target)
            finished += 1
            if process.returncode == 0:
                _remove(target)
        left = {p for p in place.iterdir() if p not in before} - {target, place / "cache"}
        if sent != signal.SIGKILL:
            assert not left, left
        for path in left:
            _remove(path)
        if not verb.keeps:
            _remove(target)
    _remove(target)
    _whole(verb, place)  # the next call works
    _remove(target)
    print(f"\n{name} {sent.name}: {TIMES} stops, {finished} had finished")


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
