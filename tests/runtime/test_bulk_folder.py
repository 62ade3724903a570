"""Folder of a run over many videos that several processes share, and one that a stranger made."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from save_deploy.errors import OutputError
from save_deploy.files import new_file
from save_deploy.runtime.bulk import ledger
from save_deploy.runtime.bulk.ledger import FAILED, Ledger, Result
from save_deploy.runtime.bulk.place import Place, RunFacts
from save_deploy.runtime.bulk.videos import Video
from tests.test_files import names, removed_once

FACTS = RunFacts(
    bundle="b", precision="fp32", backend="none", batch=1, format="rle", masks_at="frame",
    resize="exact", color="", silent=False, threshold=0.5, start_s=0.0, seconds=None, fps="native",
    versions={"av": "1"},
)  # fmt: skip


def at_once(n: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run work(0) to work(n - 1) in threads that start together; return their errors."""
    errors, start = list[BaseException](), threading.Barrier(n)

    def one(number: int) -> None:
        try:
            start.wait(10)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def test_two_writers_of_one_run_json(tmp_path: Path) -> None:
    """The first facts stay; others are refused."""
    Place(tmp_path / "out").open(FACTS, force=False)
    Place(tmp_path / "out").open(FACTS, force=False)
    with pytest.raises(OutputError, match="other settings"):
        Place(tmp_path / "out").open(replace(FACTS, bundle="c"), force=False)


@pytest.mark.parametrize("living", [True, False])
def test_run_json_that_another_shard_writes(tmp_path: Path, living: bool) -> None:
    """Its half written file is no other file; nor is that of a process that was killed at it."""
    place = Place(tmp_path / "out")
    with contextlib.ExitStack() as writes:
        if living:
            writes.enter_context(new_file(place.run)).write_text("half")
        else:
            (place.root / ".run.json.partial-0123abcd").mkdir(parents=True)
        place.open(FACTS, force=False)
        assert place.hash == FACTS.hash
    (tmp_path / "mine").mkdir()
    for name in (
        ".thesis.tex.partial-0123abcd",
        ".run.json.partial-x",
        "run.json.partial-0123abcd",
    ):
        mine = tmp_path / "mine" / name
        mine.touch()
        with pytest.raises(OutputError, match="with other files"):
            Place(tmp_path / "mine").open(FACTS, force=False)
        mine.unlink()


MOMENTS = {"listed": (Path, "iterdir"), "written": (os, "link"), "replaced": (os, "link")}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("bundle", ["b", "c"])
def test_another_shard_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, bundle: str
) -> None:
    """It writes run.json while this one lists the folder, writes or has written its own one."""
    place, other = Place(tmp_path), replace(FACTS, bundle=bundle)
    owner, name = MOMENTS[moment]
    real, called = getattr(owner, name), list[str]()

    def first(*given: Any, **more: Any) -> Any:
        monkeypatch.undo()
        called.append(moment)
        if moment == "replaced":
            real(*given, **more)
        Place(tmp_path).open(other, force=moment == "replaced")
        return None if moment == "replaced" else real(*given, **more)

    monkeypatch.setattr(owner, name, first)
    with contextlib.ExitStack() as refused:
        if other != FACTS:
            refused.enter_context(pytest.raises(OutputError, match="other settings"))
        place.open(FACTS, force=False)
    assert called and place.hash == other.hash and names(tmp_path) == ["run.json"]


def test_shards_that_start_at_once(tmp_path: Path) -> None:
    """All proceed; of two settings one is refused."""
    both = (FACTS, replace(FACTS, bundle="c"))
    for number in range(20):
        one, two = tmp_path / f"one {number}", tmp_path / f"two {number}"
        assert at_once(4, lambda _, out=one: Place(out).open(FACTS, force=False)) == []
        assert names(one) == ["run.json"] and Place(one).hash == FACTS.hash
        errors = at_once(4, lambda n, out=two: Place(out).open(both[n % 2], force=False))
        assert len(errors) == 2 and all("other settings" in str(error) for error in errors)


def test_the_reason_why_run_json_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the run remains."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OutputError, match="No space left"):
        Place(tmp_path / "out").open(FACTS, force=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize("how", ["made", "found"])
def test_attempts_of_another_actor_end_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It removes the empty folder while this one begins."""
    place = Place(tmp_path)
    gone = removed_once(monkeypatch, place.attempts, how)
    place.begin_try("a")
    assert gone and place.tries("a") == 1 and place.tried() == {"a"}
    place.end_tries("a")
    assert names(tmp_path) == []


def test_attempts_of_many_actors(tmp_path: Path) -> None:
    place = Place(tmp_path)

    def work(number: int) -> None:
        for _ in range(300):
            place.begin_try(str(number))
            assert place.tries(str(number)) == 1
            place.end_tries(str(number))

    assert at_once(4, work) == [] and names(tmp_path) == []


def test_what_is_in_the_way_of_attempts_is_said(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Place(tmp_path).begin_try("a")


def test_a_folder_that_is_removed_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "out")
    gone = removed_once(monkeypatch, place.root, "made")
    with place.locked():
        assert gone and names(place.root) == [".lock"]


def test_a_journal_is_locked_before_another_run_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That run would take it for one of an ended run, and remove it with all rows that follow."""
    place, real, others = Place(tmp_path), ledger._lock, list[threading.Thread]()

    def lock(descriptor: int) -> bool:
        if not others:  # the journal is made and not locked yet
            others.append(threading.Thread(target=Ledger(place)._merge))
            others[0].start()
            others[0].join(0.5)
        return real(descriptor)

    monkeypatch.setattr(ledger, "_lock", lock)
    with Ledger(place) as mine:
        others[0].join(10)
        assert len(list(place.results.glob(".*.jsonl"))) == 1
        mine.add(Result(Video("a", "/a.mp4"), FAILED, error="e"))
    assert [row["id"] for row in ledger.read_results(place)] == ["a"]
    assert not list(place.results.glob(".*"))
