"""Forty clips through both engines, and what is killed meanwhile: everything complete, each video once.

Ray runs on this machine alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from save_deploy.runtime.bulk.place import Place
from tests.runtime import bulk
from tests.runtime.films import tone, write_film

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("ray")]
N = 40
DEADLY = "clip07"  # whoever opens it is killed
BROKEN = "clip11"
KINDS = (
    (".mp4", "libx264", "aac"), (".mkv", "mpeg4", "mp3"), (".webm", "libvpx", "libopus"),
    (".mov", "libx264", "pcm_s16le"),
)  # fmt: skip
WAIT_S = 440


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for k in range(N):
        suffix, codec, sound_codec = KINDS[k % len(KINDS)]
        name, seconds = f"clip{k:02}", 1 + k % 2
        size, fps = ((96, 64), (64, 96), (128, 128))[k % 3], (5, 8, 10)[k // 3 % 3]
        if name == DEADLY:
            seconds, fps = 12, 25  # long enough to be met at it
        write_film(
            folder / f"{name}{suffix}", seconds=seconds, fps=fps, size=size, rate=48_000,
            sound=tone(seconds, (0,), rate=48_000), codec=codec, sound_codec=sound_codec,
        )  # fmt: skip
    broken = next(folder.glob(f"{BROKEN}.*"))
    broken.write_bytes(broken.read_bytes()[:400])
    return folder


def start(bundle: Path, clips: Path, out: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "save_deploy", "run", str(bundle), str(clips), "-o", str(out)]
    command += ["--actors", "1", "--threads-per-actor", "1", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=clips
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = "".join(process.communicate(timeout=WAIT_S))
    return process.returncode, said


@contextlib.contextmanager
def killing(out: Path, *names: str, once: bool = False) -> Iterator[list[int]]:
    """Kill -9 whatever process begins one of these videos; with once, the first one of each only."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        seen: dict[str, int] = dict.fromkeys(names, 0)
        while not over.wait(0.002):
            for name in names:
                with contextlib.suppress(OSError):
                    lines = (out / "attempts" / name).read_text().splitlines()
                    if len(lines) > seen[name] and not (once and seen[name]):
                        seen[name] = len(lines)
                        killed.append(int(lines[-1].split()[-1]))
                        os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def check_complete(out: Path, said: str) -> None:
    """Each video once, the two bad ones in failed.csv, nothing half written."""
    rows = bulk.table(out)
    assert set(rows) == {f"clip{k:02}" for k in range(N)}, said
    assert {name for name, row in rows.items() if row["status"] != "done"} == {DEADLY, BROKEN}
    found = bulk.failed(out)
    assert set(found) == {DEADLY, BROKEN} and found[DEADLY]["attempts"] == "3"
    assert "3 times" in found[DEADLY]["error"] and found[BROKEN]["attempts"] == "1"
    assert set(bulk.mask_bytes(out)) == {f"{n}.parquet" for n in rows} - {
        f"{DEADLY}.parquet",
        f"{BROKEN}.parquet",
    }
    assert not bulk.left_over(out), said


def wait_for(out: Path, n: int, process: subprocess.Popen[str]) -> None:
    """Until n videos are done and another one is in hand."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until and process.poll() is None:
        if len(list(out.glob("masks/*/*.parquet"))) >= n and list(out.glob("attempts/*")):
            return
        time.sleep(0.005)
    raise AssertionError(ended(process))


@pytest.fixture(scope="module")
def local(
    clips: Path, bundle_fp32: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Mask files of the engine local: the deadly clip ends the process three times."""
    out, ends = tmp_path_factory.mktemp("local") / "out", list[int]()
    with killing(out, DEADLY) as killed:
        while not ends or ends[-1] == -signal.SIGKILL:
            code, said = ended(start(bundle_fp32, clips, out))
            ends.append(code)
            assert len(ends) < 6, said
    assert ends == [-signal.SIGKILL] * 3 + [2] and len(killed) == 3, said
    check_complete(out, said)
    return bulk.mask_bytes(out)


def test_shards_at_once(clips: Path, bundle_fp32: Path, tmp_path: Path) -> None:
    """Three processes with one OUT: every video once, made by one of them."""
    out = tmp_path / "out"
    shards = [start(bundle_fp32, clips, out, "--shard", f"{i}/3") for i in range(3)]
    ends = [ended(process) for process in shards]
    assert sorted(code for code, _ in ends) == [0, 0, 2], ends
    rows = bulk.table(out)
    assert len(rows) == N and set(bulk.failed(out)) == {BROKEN}
    assert sum(int(said.split(" videos done")[0].split()[-1]) for _, said in ends) == N - 1
    assert len(bulk.mask_bytes(out)) == N - 1 and not bulk.left_over(out)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_ctrl_c_leaves_nothing_half(
    clips: Path, bundle_fp32: Path, tmp_path: Path, engine: str
) -> None:
    """And the same command goes on."""
    pytest.importorskip("ray", reason='pip install "save-deploy[ray]"')
    out = tmp_path / "out"
    process = start(bundle_fp32, clips, out, "--engine", engine)
    wait_for(out, 3, process)
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130 and "same command again to resume" in said, said
    done = bulk.mask_bytes(out)
    assert 3 <= len(done) < N
    assert [name for name in bulk.left_over(out) if "jsonl" not in name] == []
    code, said = ended(start(bundle_fp32, clips, out, "--engine", engine))
    assert code == 2 and "before)" in said, said
    rows = bulk.table(out)
    assert len(rows) == N and set(bulk.failed(out)) == {BROKEN} and not bulk.left_over(out)
    # what a worker put in its place while the driver ended has a row of its file alone
    of_file = {name for name, row in rows.items() if not row["host"]}
    assert {f"{name}.parquet" for name in of_file} <= set(done)
    assert all(rows[name]["status"] == "done" and rows[name]["frames"] for name in of_file)
    assert bulk.mask_bytes(out).items() >= done.items()


def test_workers_of_ray_are_killed(
    clips: Path, bundle_fp32: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    """The deadly clip costs its three tries, another worker's death costs nothing; byte for byte the
    masks of the other engine."""
    pytest.importorskip("ray", reason='pip install "save-deploy[ray]"')
    out = tmp_path / "out"
    with killing(out, DEADLY) as deadly, killing(out, "clip20", once=True) as other:
        code, said = ended(start(bundle_fp32, clips, out, "--engine", "ray"))
    assert code == 2, said
    check_complete(out, said)
    assert len(deadly) == 3 and len(other) == 1
    assert bulk.table(out)["clip20"]["attempts"] == 2
    assert bulk.mask_bytes(out) == local


def test_driver_of_ray_is_killed(
    clips: Path, bundle_fp32: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    """The same command goes on; what was done is not done again."""
    pytest.importorskip("ray", reason='pip install "save-deploy[ray]"')
    out = tmp_path / "out"
    with killing(out, DEADLY):
        process = start(bundle_fp32, clips, out, "--engine", "ray")
        wait_for(out, 3, process)
        process.kill()
        ended(process)
        before = {p: p.stat().st_mtime_ns for p in out.glob("masks/*/*.parquet")}
        code, said = ended(start(bundle_fp32, clips, out, "--engine", "ray"))
    assert code == 2 and "before)" in said, said
    check_complete(out, said)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert bulk.mask_bytes(out) == local


def test_second_node_of_ray_is_killed(
    clips: Path, bundle_fp32: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    """Two raylets on loopback; the one with a video in hand goes."""
    pytest.importorskip("ray", reason='pip install "save-deploy[ray]"')
    from ray.cluster_utils import Cluster

    out = tmp_path / "out"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        second = cluster.add_node(num_cpus=1)
        with killing(out, DEADLY):
            args = ("--engine", "ray", "--address", cluster.address, "--actors", "2")
            process = start(bundle_fp32, clips, out, *args)
            wait_for(out, 3, process)
            cluster.remove_node(second, allow_graceful=False)
            code, said = ended(process)
    finally:
        cluster.shutdown()
    assert code == 2, said
    check_complete(out, said)
    assert bulk.mask_bytes(out) == local
    assert Place(out).hash
