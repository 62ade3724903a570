"""Folder of a run over many videos that several processes share, and one that a stranger made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from save_deploy.errors import OutputError
from save_deploy.runtime.bulk.place import Place, RunFacts
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
