"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from save_deploy import files
from save_deploy.bundle import check_own_bundle
from save_deploy.errors import OutputError
from save_deploy.files import (
    cache_folder,
    cache_root,
    check_file_target,
    check_folder_target,
    check_not_of_bundle,
    new_file,
    new_folder,
    write_text,
)
from save_deploy.partials import filled_folder, partial_folder
from tests.test_manifest import manifest


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with pytest.raises(ZeroDivisionError), new_file(target) as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert names(tmp_path) == []
    write_text(target, "first")
    with new_file(target) as partial:
        partial.write_text("second")
        assert target.read_text() == "first"
    assert target.read_text() == "second" and names(tmp_path) == ["a.json"]


def test_two_attempts_have_two_partial_files(tmp_path: Path) -> None:
    with new_file(tmp_path / "a") as one, new_file(tmp_path / "a") as two:
        one.write_text("one")
        two.write_text("two")
        assert one != two
    assert (tmp_path / "a").read_text() == "one"  # the last to end wins whole


def test_a_users_own_partial_file_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.partial", ".a.partial-x", ".a.partial-1-mine"):
        (tmp_path / name).write_text("theirs")
    write_text(tmp_path / "a", "ours")
    assert {(tmp_path / n).read_text() for n in names(tmp_path) if "partial" in n} == {"theirs"}


@pytest.mark.skipif(sys.platform == "win32", reason="no folder locks there")
@pytest.mark.parametrize("made_again", [False, True])
def test_a_partial_folder_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    """Another process removes it after it was opened and before it is locked: a new one is made."""
    import fcntl

    real, removed = fcntl.flock, list[Path]()

    def flock(descriptor: int, how: int) -> None:
        if not removed:
            removed.extend(tmp_path.glob(".a.partial-*"))
            removed[0].rmdir()
            if made_again:
                removed[0].mkdir()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with new_file(tmp_path / "a") as partial:
        assert partial.parent != removed[0]
        partial.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_partials_of_ended_processes_are_removed(tmp_path: Path) -> None:
    """Known by their lock, not by a process id: every container has a process 1 of its own."""
    code = (
        "import os, pathlib, sys; from save_deploy.partials import partial_folder\n"
        "with partial_folder(pathlib.Path(sys.argv[1])) as folder: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "a")], timeout=60)
    (dead,) = tmp_path.iterdir()
    with partial_folder(tmp_path / "a") as living:
        assert not dead.exists()
        with partial_folder(tmp_path / "a"):
            assert living.exists()
    assert names(tmp_path) == []


def test_what_a_killed_process_was_replacing_comes_back(tmp_path: Path) -> None:
    old = tmp_path / ".a.partial-0a1b2c3d" / "old" / "a"
    old.mkdir(parents=True)
    (old / "model").write_text("of an hour")
    with partial_folder(tmp_path / "a"):
        assert (tmp_path / "a" / "model").read_text() == "of an hour"


def test_of_two_new_folders_one_wins_whole(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(OutputError, match="output exists"), new_folder(target) as late:
        (late / "late").write_text("")
        with new_folder(target) as early:
            (early / "early").write_text("")
    assert names(tmp_path) == ["a"] and names(target) == ["early"]

    def is_ours(folder: Path) -> None:
        if names(folder) != ["early"]:
            raise OutputError("not ours")

    with new_folder(target, is_ours=is_ours) as forced:
        (forced / "forced").write_text("")
    assert names(tmp_path) == ["a"] and names(target) == ["forced"]
    with pytest.raises(OutputError, match="not write"), new_folder(target, is_ours=is_ours):
        pass
    assert names(tmp_path) == ["a"] and names(target) == ["forced"]


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "no hard links on this file system")


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_new_files_one_wins_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    target = tmp_path / "a"
    with pytest.raises(OutputError, match="output exists"), new_file(target, replace=False) as late:
        late.write_text("late")
        with new_file(target, replace=False) as early:
            early.write_text("early")
    assert target.read_text() == "early" and names(tmp_path) == ["a"]


def test_nothing_is_written_through_a_planted_link(tmp_path: Path) -> None:
    """The partial file lies in a folder that only its maker can write into, under a new name."""
    (tmp_path / "mine").write_text("mine")
    for name in ("a.partial", ".a.partial", f".a.partial-{os.getpid()}", "new"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    with new_file(tmp_path / "a") as partial:
        assert stat.S_IMODE(partial.parent.stat().st_mode) & 0o022 == 0
        partial.write_text("ours")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_long_name_and_one_that_is_not_utf8(tmp_path: Path) -> None:
    for name in ("x" * 255, os.fsdecode(b"\xff\xfe.json")):
        write_text(tmp_path / name, f"about {name}")
        assert (tmp_path / name).read_text().startswith("about ")


def test_errors_of_libraries_about_the_disk(tmp_path: Path) -> None:
    """safetensors, torch and libsndfile have errors of their own that are no OSError."""
    said = "I/O error: No space left on device (os error 28)"
    with pytest.raises(OutputError, match="the weights cannot be written"):
        with new_file(tmp_path / "deep" / "a", what="the weights"):
            raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="a bug"), new_file(tmp_path / "deep" / "a"):
        raise RuntimeError("a bug")
    assert names(tmp_path) == []


def test_a_link_keeps_pointing_at_its_replaced_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "real").read_text() == "new"


def test_links_in_a_circle_stay(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for write in (
        lambda: write_text(tmp_path / "a", "x"),
        lambda: new_folder(tmp_path / "a").__enter__(),
    ):
        with pytest.raises(OutputError, match="Too many levels of symbolic links"):
            write()
    assert os.readlink(tmp_path / "a") == "b" and names(tmp_path) == ["a", "b"]


def test_files_of_the_bundle_in_use(tmp_path: Path) -> None:
    inside = tmp_path / "bundle" / "golden" / "image.npy"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"old")
    (tmp_path / "link").symlink_to(inside)
    for path in (inside, tmp_path / "link", tmp_path / "bundle" / "golden"):
        with pytest.raises(OutputError, match="a file of the bundle"):
            check_not_of_bundle(path, tmp_path / "bundle")
    check_not_of_bundle(tmp_path / "bundle" / "new.png", tmp_path / "bundle")
    check_not_of_bundle(tmp_path / "link", tmp_path / "bundle" / "golden" / "other")


def test_a_device_and_a_pipe_are_written_through(tmp_path: Path) -> None:
    write_text(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(timeout=10)
    assert got == ["through"] and stat.S_ISFIFO(os.stat(pipe).st_mode)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the report cannot be written"):
        write_text(tmp_path / "file" / "below", "text", what="the report")
    with (
        pytest.raises(OutputError, match="the report cannot be written"),
        new_folder(tmp_path / "file" / "below", what="the report"),
    ):
        pass
    with pytest.raises(OutputError, match="output exists"):
        check_file_target(tmp_path / "file", force=False)
    check_file_target(Path("/dev/null"), force=False)


def test_new_folders_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with new_folder(tmp_path / "made") as folder:
        (folder / "x").write_text("")
    modes = {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("plain", "made")}
    assert len(modes) == 1


def test_cache_without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (files.ENV_CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"save-deploy-{os.getuid()}"
    assert cache_root() == own and own.stat().st_mode & 0o777 == 0o700
    assert cache_folder("openvino") == own / "openvino"
    own.chmod(0o777)  # anybody may have written there
    assert cache_folder("openvino") is None
    own.rename(tmp_path / "elsewhere")
    own.symlink_to(tmp_path / "elsewhere")
    assert cache_folder("openvino") is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(files.ENV_CACHE, str(tmp_path / "file"))
    assert cache_folder("openvino") is None


def test_only_a_bundle_of_ours_is_replaced(tmp_path: Path) -> None:
    """Its manifest can be read and lists everything else in the folder; an empty folder will do."""
    photos, page, ours, empty = (tmp_path / n for n in ("photos", "page", "ours", "empty"))
    for folder in (photos, page, ours, empty):
        folder.mkdir()
        with pytest.raises(OutputError, match="output exists"):
            check_folder_target(folder, force=False)
    (photos / "a.jpg").touch()
    (page / "manifest.json").write_text('{"name": "my web app"}')
    manifest().write(ours)
    (ours / "model.onnx").touch()
    for folder in (ours, empty):
        check_folder_target(folder, force=True, is_ours=check_own_bundle)
    (ours / "thesis.txt").touch()
    for folder, why in ((photos, "not a bundle"), (page, "manifest"), (ours, "thesis.txt")):
        with pytest.raises(OutputError, match=f"refusing(.|\n)*{why}"):
            check_folder_target(folder, force=True, is_ours=check_own_bundle)


def removed_once(
    monkeypatch: pytest.MonkeyPatch, folder: Path, how: str, *more: Path
) -> list[Path]:
    """Another process removes a folder (and more): right after it is made, or while it is found."""
    real, gone = os.mkdir, list[Path]()

    def mkdir(path: Path, *mode: int) -> None:
        first = Path(path) == folder and not gone
        if first:
            gone.extend((folder, *more))
        if first and how == "found":
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        real(path, *mode)
        if first:
            for each in gone:
                each.rmdir()

    monkeypatch.setattr(os, "mkdir", mkdir)
    return gone


@pytest.mark.parametrize("how", ["made", "found"])
def test_an_empty_folder_that_another_process_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """After its own error it removes what it made; whoever came meanwhile makes it again."""
    for folder in (tmp_path / "a", tmp_path / "b" / "c"):
        gone = removed_once(monkeypatch, folder, how)
        write_text(folder / "file", "whole")
        assert gone == [folder] and (folder / "file").read_text() == "whole"
        assert names(folder) == ["file"]


def test_a_folder_that_is_filled_and_was_found_a_moment_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = removed_once(monkeypatch, tmp_path / "a", "found")
    with pytest.raises(ZeroDivisionError), filled_folder(tmp_path / "a"):
        assert gone and (tmp_path / "a").is_dir()
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_folders_made_again_go_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was there at first, of the process that removed it."""
    (tmp_path / "a").mkdir()
    gone = removed_once(monkeypatch, tmp_path / "a" / "b", "made", tmp_path / "a")
    with pytest.raises(ZeroDivisionError), partial_folder(tmp_path / "a" / "b" / "c"):
        raise ZeroDivisionError
    assert len(gone) == 2 and names(tmp_path) == []


def test_what_is_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("nothing")
    for name in ("file", "nowhere"):
        with (
            pytest.raises(OutputError, match="the folder cannot be written"),
            filled_folder(tmp_path / name),
        ):
            pass
        with pytest.raises(OutputError, match="the folder cannot be written"):
            partial_folder(tmp_path / name / "below").__enter__()
    assert names(tmp_path) == ["file", "nowhere"]
