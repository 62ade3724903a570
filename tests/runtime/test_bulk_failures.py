"""Many videos in one run: what ends a process, a store, a bundle or the disk in the middle of it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.runtime.bulk import film as bulk_film
from save_deploy.runtime.bulk.place import Place
from tests.runtime import bulk

pytestmark = pytest.mark.slow
IDS = ("night__three", "one", "two")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bulk.write_films(tmp_path_factory.mktemp("films") / "films")


@pytest.fixture
def empty(tmp_path: Path, bundle_fp32: Path) -> Path:
    return bulk.empty_bundle(tmp_path / "bundle", bundle_fp32)


def test_a_store_that_fails_for_the_moment(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again as often as a video may be."""
    import fsspec

    bulk.see(monkeypatch)
    monkeypatch.setattr(bulk.worker, "_PAUSE_S", 0.001)
    store, left = fsspec.filesystem("memory"), [2]
    store.put(str(films / "one.mp4"), "/flaky/one.mp4")
    plain = type(store).get_file

    def get_file(self: Any, *args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("slow down")
        return plain(self, *args, **options)

    monkeypatch.setattr(type(store), "get_file", get_file)
    for fails, code, attempts in ((2, 0, 3), (3, 2, 3)):
        left[0], out = fails, tmp_path / str(fails)
        assert bulk.run(empty, "memory://flaky/one.mp4", "-o", out).returncode == code
        assert bulk.table(out)["one"]["attempts"] == attempts
        assert ("slow down" in bulk.table(out)["one"]["error"]) == bool(code)
    store.rm("/flaky", recursive=True)


def test_a_video_that_ends_its_process_fails_in_the_end(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of killed tries are counted; the run after the one that says so tries anew."""
    bulk.see(monkeypatch)
    out, place = tmp_path / "out", Place(tmp_path / "out")
    assert bulk.run(empty, films / "two.mkv", "-o", out, "--format", "rle").returncode == 0
    for _ in range(3):
        place.begin_try("one")
    done = bulk.run(empty, films / "one.mp4", "-o", out, "--format", "rle")
    assert done.returncode == 2 and "crashed 3 times" in done.stdout
    assert bulk.failed(out)["one"]["attempts"] == "3" and not bulk.left_over(out)
    assert bulk.run(empty, films / "one.mp4", "-o", out, "--format", "rle").returncode == 0
    assert bulk.table(out)["one"]["status"] == "done" and bulk.failed(out) == {}


def test_remains_of_a_killed_run_go(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its half written files, its journal, the attempt of a finished video, and rows that it did not
    come to write."""
    bulk.see(monkeypatch)
    out = tmp_path / "out"
    args = (films / "two.mkv", "-o", out, "--format", "rle")
    assert bulk.run(empty, *args).returncode == 0
    row, place = bulk.table(out)["two"], Place(out)
    (out / "results" / "videos.parquet").unlink()
    half = place.mask_file("two").parent / ".two.parquet.partial-0123abcd"
    half.mkdir()
    (half / "new.parquet").write_bytes(b"PAR1")
    journal = out / "results" / ".0123456789ab.jsonl"
    journal.write_text(json.dumps({**row, "id": "three", "frames": 7}) + '\n{"id": "cut')
    place.begin_try("two")
    assert bulk.run(empty, *args).returncode == 0
    found = bulk.table(out)
    assert found["three"]["frames"] == 7 and found["two"]["frames"] == 16
    assert found["two"]["sha256"] == row["sha256"]
    assert not bulk.left_over(out)


def test_a_bundle_that_is_swapped_ends_the_run(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eyes = bulk.see(monkeypatch)
    plain = eyes.run

    def swap(images: np.ndarray, heard: np.ndarray) -> np.ndarray:
        new = empty / f"new {threading.get_ident()}"
        new.write_bytes(b"another")
        os.replace(new, empty / "model.onnx")
        return plain(images, heard)

    monkeypatch.setattr(eyes, "run", swap)
    done = bulk.run(empty, films, "-o", tmp_path / "out")
    assert done.returncode == 1 and "bundle changed during the run" in done.stderr
    assert bulk.mask_bytes(tmp_path / "out") == {} and not bulk.left_over(tmp_path / "out")


def test_a_full_disk_ends_the_run_and_leaves_nothing_half(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk.see(monkeypatch)
    out, plain = tmp_path / "out", bulk_film.MaskFile.add

    def full(self: Any, row: Any) -> None:
        if self.n == 12:
            raise OSError(28, "No space left on device")
        plain(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(bulk_film.MaskFile, "add", full)
        done = bulk.run(empty, films, "-o", out)
    assert done.returncode == 1 and "No space left" in done.stderr
    assert "free some space" in done.stderr and not bulk.left_over(out)
    assert bulk.run(empty, films, "-o", out).returncode == 2
    assert set(bulk.mask_bytes(out)) == {f"{name}.parquet" for name in IDS}
