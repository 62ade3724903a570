"""Files of a bundle are compared with their hashes once, and again after any change."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from save_deploy import bundle_files
from save_deploy.bundle_files import FileRecord, checked, record_files
from save_deploy.errors import BundleError

LARGE = "model.onnx.data"
Files = dict[str, FileRecord]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundle_files, "_SETTLED_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, in order."""
    names, plain = list[str](), bundle_files.sha256_of
    monkeypatch.setattr(bundle_files, "sha256_of", lambda p: names.append(p.name) or plain(p))
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(os.urandom(1_500_000))
    (folder / LARGE).write_bytes(os.urandom(2_000_000))
    (folder / "small.npy").write_bytes(b"1234")
    return folder


def check(folder: Path, files: Files, *, meanwhile: bool = True) -> None:
    time.sleep(0.01)  # more than one tick of the file system's clock
    with checked(folder, files, meanwhile=meanwhile, parsed=("model.onnx",)) as confirm:
        confirm()


def test_weights_are_hashed_once(folder: Path, hashed: list[str]) -> None:
    """The graph and small files each time, and everything for backends that run code."""
    files = record_files(folder, "")
    hashed.clear()
    check(folder, files)
    assert sorted(hashed) == ["model.onnx", LARGE, "small.npy"]
    hashed.clear()
    check(folder, files)
    assert sorted(hashed) == ["model.onnx", "small.npy"]
    check(folder, files, meanwhile=False)
    assert LARGE in hashed


def in_place(path: Path) -> None:
    """One bit, and the times of before."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    status = path.stat()
    path.with_name("new").write_bytes(os.urandom(status.st_size))
    os.replace(path.with_name("new"), path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [in_place, replaced, lambda p: os.truncate(p, 999)])
def test_changed_weights_are_found(folder: Path, change: object) -> None:
    """Also with the times of before; and a copy of the right file is accepted again."""
    files, right = record_files(folder, ""), (folder / LARGE).read_bytes()
    check(folder, files)
    time.sleep(0.01)
    change(folder / LARGE)  # type: ignore[operator]
    for _ in range(2):
        with pytest.raises(BundleError, match=f"altered(.|\n)*{LARGE}"):
            check(folder, files)
    (folder / LARGE).write_bytes(right)
    check(folder, files)


def test_a_mark_is_of_one_manifest(folder: Path, tmp_path: Path) -> None:
    """The same files under other hashes, and another folder of the same name, are compared."""
    files = record_files(folder, "")
    check(folder, files)
    other = {**files, LARGE: FileRecord("0" * 64, files[LARGE].size)}
    with pytest.raises(BundleError, match="altered"):
        check(folder, other)
    folder.rename(tmp_path / "away")
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(os.urandom(files[name].size))
    with pytest.raises(BundleError, match="altered"):
        check(folder, {LARGE: files[LARGE]})


def test_young_files_are_hashed_again(
    folder: Path, cache: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within one tick of the clock would leave their times the same."""
    monkeypatch.setattr(bundle_files, "_SETTLED_S", 60.0)
    files = record_files(folder, "")
    for _ in range(2):
        hashed.clear()
        check(folder, files)
        assert LARGE in hashed
    os.utime(folder / LARGE, (0, 0))  # an old file that was copied just now
    hashed.clear()
    check(folder, files)
    check(folder, files)
    assert hashed.count(LARGE) == 2 and not (cache / "checked").exists()


def test_a_file_that_changes_meanwhile_is_not_marked(folder: Path, cache: Path) -> None:
    files = record_files(folder, "")
    time.sleep(0.01)
    with checked(folder, files, meanwhile=True, parsed=()) as confirm:
        confirm()
        in_place(folder / LARGE)
    assert not list(cache.rglob("*"))
    with pytest.raises(BundleError, match="altered"):
        check(folder, files)


def test_without_a_cache_all_is_hashed(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", "/proc/nowhere")
    files = record_files(folder, "")
    for _ in range(2):
        hashed.clear()
        check(folder, files)
        assert LARGE in hashed
