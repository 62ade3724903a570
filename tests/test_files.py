"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from save_deploy import files
from save_deploy.errors import OutputError
from save_deploy.files import (
    cache_folder,
    cache_root,
    check_file_target,
    check_folder_target,
    new_file,
    new_folder,
    partial_folder,
    write_text,
)


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


def test_partials_of_ended_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = (
        tmp_path / f".a.partial-{ended.pid}-00",
        tmp_path / f".a.partial-{os.getpid()}-00",
    )
    dead.mkdir()
    living.mkdir()
    with partial_folder(tmp_path / "a"):
        assert not dead.exists() and living.exists()


def test_a_link_keeps_pointing_at_its_replaced_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "real").read_text() == "new"


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


def test_only_a_folder_of_ours_is_replaced(tmp_path: Path) -> None:
    photos, ours = tmp_path / "photos", tmp_path / "ours"
    for folder, name in ((photos, "a.jpg"), (ours, "manifest.json")):
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(OutputError, match="output exists"):
            check_folder_target(folder, force=False)
    check_folder_target(ours, force=True)
    with pytest.raises(OutputError, match="not a bundle"):
        check_folder_target(photos, force=True)
