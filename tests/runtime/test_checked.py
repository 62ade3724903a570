"""Files of a bundle are compared with their hashes once, and again after any change."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from save_deploy import bundle_files
from save_deploy.bundle import Manifest
from save_deploy.bundle_files import FileRecord, checked, record_files
from save_deploy.errors import BundleError
from save_deploy.export import graph
from save_deploy.runtime.pipeline import load

LARGE = "model.onnx.data"
Files = dict[str, FileRecord]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundle_files, "_SETTLED_NS", 0)
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, in order."""
    names, plain = list[str](), bundle_files._sha256
    see = lambda file: names.append(Path(file.name).name) or plain(file)
    monkeypatch.setattr(bundle_files, "_sha256", see)
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
    monkeypatch.setattr(bundle_files, "_SETTLED_NS", 60 * 10**9)
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
    assert len(list(cache.glob("checked/*"))) == 1  # of the graph
    with pytest.raises(BundleError, match="altered"):
        check(folder, files)


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("searchable", [True, False])
def test_without_a_cache_all_is_hashed(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, searchable: bool
) -> None:
    """No folder can be made; or there is one of another user, which may not be searched."""
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", "/proc/nowhere")
    if not searchable:
        monkeypatch.setattr(Path, "exists", refuse)
        monkeypatch.setattr("save_deploy.files.new_file", refuse)
    files = record_files(folder, "")
    for _ in range(2):
        hashed.clear()
        check(folder, files)
        assert LARGE in hashed


def test_reports_are_not_marked(folder: Path, cache: Path) -> None:
    """Nobody compares them."""
    (folder / "calibration.json").write_bytes(bytes(2_000_000))
    check(folder, {"calibration.json": FileRecord("0" * 64, 2_000_000)})
    assert not (cache / "checked").exists()


def test_a_link_that_leads_elsewhere_meanwhile(
    folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the right file only while it is compared: the other one has no mark of its hash."""
    files, real, other = record_files(folder, ""), tmp_path / "real", tmp_path / "other"
    (folder / LARGE).rename(real)
    other.write_bytes(bytes(files[LARGE].size))

    def lead(to: Path) -> None:
        (tmp_path / "link").symlink_to(to)
        os.replace(tmp_path / "link", folder / LARGE)

    lead(other)
    plain = bundle_files._check

    def swapped(folder: Path, name: str, record: FileRecord) -> os.stat_result:
        lead(real)
        status = plain(folder, name, record)
        lead(other)
        return status

    monkeypatch.setattr(bundle_files, "_check", swapped)
    check(folder, {LARGE: files[LARGE]})
    monkeypatch.undo()
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(cache))
    monkeypatch.setattr(bundle_files, "_SETTLED_NS", 0)
    with pytest.raises(BundleError, match="altered"):
        check(folder, {LARGE: files[LARGE]})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_of_links_is_marked_too(
    bundle_fp32: Path, tmp_path: Path, cache: Path, hashed: list[str],
    monkeypatch: pytest.MonkeyPatch, backend: str,
) -> None:  # fmt: skip
    """Hard links of its weights, which change their ctime, are made only to compile them."""
    monkeypatch.setattr(graph, "EXTERNAL_ABOVE_BYTES", 1000)
    monkeypatch.setattr("save_deploy.runtime.session.ort._PACKED_FROM_BYTES", 0)
    files, bundle = tmp_path / "files", tmp_path / "bundle"
    shutil.copytree(bundle_fp32, files)
    model = graph.ir.load(bundle_fp32 / "model.onnx")
    (files / "model.onnx").unlink()
    data = graph.save_graph(model, files / "model.onnx")[1]
    replace(Manifest.read(files), files=record_files(files, "manifest.json")).write(files)
    shutil.copytree(files, bundle, copy_function=lambda a, b: Path(b).symlink_to(a))
    (bundle / data.name).unlink()
    (tmp_path / "blob").write_bytes(data.read_bytes())
    (bundle / data.name).symlink_to(tmp_path / "blob")
    for _ in range(2):  # compiled in the first
        load(bundle, backend=backend, threads=1).close()
        time.sleep(0.01)
    hashed.clear()
    load(bundle, backend=backend, threads=1).close()
    assert hashed and not {data.name, "blob"} & set(hashed)
